-- Patterns near a query, and what is known in each. Reading writes nothing.

DROP FUNCTION IF EXISTS sona._indexed_patterns(bigint, integer);

CREATE OR REPLACE FUNCTION sona._indexed_patterns(space_id bigint, dim integer, columns text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- Literals: a partial index on an expression serves only the very same expression and predicate. Not format(), which is
-- no part of an expression that is put together in line.
RETURN 'SELECT ' || columns || ' FROM sona.pattern p WHERE p.space_id = ' || coalesce(space_id, 0)::text
    || ' ORDER BY (p.centroid::' || sona._indexed_type(dim) || ') OPERATOR(@vector@.<=>) $1::' || sona._indexed_type(dim)
    || ' LIMIT $2';
COMMENT ON FUNCTION sona._indexed_patterns IS
    'A statement that finds, through the index of a space, the $2 patterns p nearest to $1.';

CREATE OR REPLACE FUNCTION sona.find_patterns(space text, query @vector@.vector, k integer DEFAULT 5)
RETURNS TABLE (pattern_id bigint, similarity double precision, cluster_size bigint, support bigint,
               avg_quality double precision, confidence double precision, best_strategy text, title text, description text,
               content text)
-- Of the 1000 that are usual, who joins them with the patterns would read all patterns.
LANGUAGE plpgsql STABLE ROWS 10
SET search_path = pg_catalog, sona, pg_temp
-- In its order, so that what the index gives is sorted.
SET hnsw.iterative_scan = 'strict_order'
-- Centroids lie in clumps, of which the usual 40 miss some.
SET hnsw.ef_search = 100 AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._searched_space(find_patterns.space, query, k);
    nearest text;
    found bigint := 0;
    ids bigint[] := '{}';
BEGIN
    -- hnsw.ef_search is 1000 at most, and a scan that goes on for more finds less and less.
    IF k <= 1000 AND sona._vectors_index('pattern', s.space_id) IS NOT NULL THEN
        -- Set back when this function ends.
        IF k > 100 THEN PERFORM sona._widen_search(k); END IF;
        nearest := sona._indexed_patterns(
            s.space_id, s.dim,
            'p.pattern_id, coalesce(1 - nullif(p.centroid OPERATOR(@vector@.<=>) $1, ''NaN''), 0) AS similarity,'
            ' p.cluster_size, p.support, p.avg_quality, p.confidence, p.best_strategy, p.title, p.description, p.content');
        -- What is indexed by half is sorted in full.
        IF s.dim > 2000 THEN
            nearest := 'SELECT * FROM (' || nearest || ') n ORDER BY n.similarity DESC, n.pattern_id';
        END IF;
        -- One level, and only what is returned: this is planned at every call.
        RETURN QUERY EXECUTE nearest USING query, k;
        GET DIAGNOSTICS found = ROW_COUNT;
        IF found > 0 AND found < k THEN
            EXECUTE 'SELECT ARRAY(' || sona._indexed_patterns(s.space_id, s.dim, 'p.pattern_id') || ')'
            INTO ids USING query, k;
        END IF;
        IF found = k THEN RETURN; END IF;
    END IF;
    -- All of them, where there is no index; else what it has not found. A query without a direction is unrelated to all.
    RETURN QUERY
    SELECT n.pattern_id, coalesce(1 - nullif(n.away, 'NaN'), 0), n.cluster_size, n.support, n.avg_quality, n.confidence,
           n.best_strategy, n.title, n.description, n.content
    FROM (SELECT p.*, p.centroid OPERATOR(@vector@.<=>) find_patterns.query AS away FROM sona.pattern p
          WHERE p.space_id = s.space_id AND p.pattern_id <> ALL (ids) ORDER BY away, p.pattern_id
          LIMIT find_patterns.k - found) n
    ORDER BY n.away, n.pattern_id;
END $$;
COMMENT ON FUNCTION sona.find_patterns IS
    'The k patterns nearest to a query, by cosine, nearest first: never fewer than there are. Writes nothing, and counts '
    'nothing therefore.';

CREATE OR REPLACE FUNCTION sona.index_patterns(space text, keep_exact integer DEFAULT 4000) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN sona._index_by_size('pattern', space, keep_exact);
COMMENT ON FUNCTION sona.index_patterns IS
    'Makes an HNSW index of the patterns of a space that has more than keep_exact of them and no index; whether it has.';

CREATE OR REPLACE FUNCTION sona._count_accesses(space_id bigint, ids bigint[], counts bigint[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    counted bigint;
BEGIN
    -- Before the patterns are read: who drops the space waits for that, and this for the rows that go.
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('sona.count_accesses', space_id));
    -- Added, never set: several count, and a cycle merges meanwhile. In order: so nobody waits for who waits for him. An
    -- application may have written any count: of two such ones the sum would be no bigint.
    INSERT INTO sona.pattern_access AS a (space_id, pattern_id, access_count, last_accessed)
    SELECT p.space_id, p.pattern_id, c.times, clock_timestamp()
    FROM (SELECT u.id, least(sum(least(u.times, 2147483647)), 2147483647)::bigint AS times
          FROM unnest(_count_accesses.ids, _count_accesses.counts) u (id, times) WHERE u.times > 0 GROUP BY u.id) c
    JOIN sona.pattern p ON p.space_id = _count_accesses.space_id AND p.pattern_id = c.id
    ORDER BY p.pattern_id
    ON CONFLICT (space_id, pattern_id) DO UPDATE
    SET access_count = least(a.access_count, 1::bigint << 61) + excluded.access_count,
        last_accessed = greatest(a.last_accessed, excluded.last_accessed);
    GET DIAGNOSTICS counted = ROW_COUNT;
    RETURN counted;
END $$;
COMMENT ON FUNCTION sona._count_accesses IS
    'Adds how often patterns of a space were found; returns of how many. What is gone is left out.';

CREATE OR REPLACE FUNCTION sona.optimized_params(
    space text, query @vector@.vector, defaults jsonb DEFAULT NULL, k integer DEFAULT 5
) RETURNS TABLE (parameter text, value jsonb, confidence double precision, source bigint[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._searched_space(optimized_params.space, query, k);
BEGIN
    IF jsonb_typeof(optimized_params.defaults) <> 'object' THEN
        PERFORM sona._refuse('SN003', format('the defaults are of type %s', jsonb_typeof(optimized_params.defaults)),
                             'pass an object, values by parameter');
    END IF;
    -- As sona_pg.learning.recommendation, of which a test says that it is the same.
    RETURN QUERY
    WITH near AS MATERIALIZED (
        SELECT n.pattern_id, p.space_id, exp(greatest(
            (n.similarity - max(n.similarity) OVER ()) / (p.settings ->> 'similarity_width')::double precision,
            -500)) AS similarity
        FROM sona.pattern_state p, sona.find_patterns(s.name, optimized_params.query, optimized_params.k) n
        WHERE p.space_id = s.space_id AND p.settings IS NOT NULL),
    said AS MATERIALIZED (
        SELECT v.parameter, n.pattern_id, n.similarity, v.best_value AS value, n.similarity * v.best_confidence AS weight,
               v.best_value IS NOT NULL AND v.best_confidence > 0 AS has_vote, o.is_number,
               CASE WHEN o.is_number THEN (v.best_value #>> '{}')::double precision END AS number,
               -- 1 and 1.0 are one value; of anything else, as it is written.
               CASE WHEN o.is_number THEN ((v.best_value #>> '{}')::double precision)::text
                    ELSE v.best_value::text END AS key
        FROM near n JOIN sona.verdict v USING (space_id, pattern_id),
        LATERAL (SELECT coalesce(jsonb_typeof(v.best_value) = 'number', false) AS is_number) o),
    known AS (
        SELECT d.parameter, sum(d.similarity) AS similarity, sum(d.weight) FILTER (WHERE d.has_vote) AS weight,
               bool_and(d.is_number) FILTER (WHERE d.has_vote) AS is_numeric,
               bool_and(d.value::text !~ '[.]') FILTER (WHERE d.has_vote) AS is_whole,
               count(DISTINCT d.key) FILTER (WHERE d.has_vote) AS keys,
               array_agg(d.pattern_id ORDER BY d.weight DESC, d.pattern_id) FILTER (WHERE d.has_vote) AS ids,
               (array_agg(d.value ORDER BY d.weight DESC, d.pattern_id) FILTER (WHERE d.has_vote))[1] AS first
        FROM said d GROUP BY d.parameter),
    mean AS (
        -- What is less than a double can be is nothing: the product would be refused.
        SELECT d.parameter, sum(CASE WHEN d.number = 0 OR ln(d.weight / k.weight) + ln(abs(d.number)) < -700 THEN 0
                                     ELSE d.weight / k.weight * d.number END) AS number
        FROM said d JOIN known k USING (parameter) WHERE d.has_vote AND k.is_numeric AND k.keys > 1 GROUP BY d.parameter),
    -- Of equal ones that of the weightiest vote.
    winner AS (
        SELECT DISTINCT ON (c.parameter) c.* FROM (
            SELECT d.parameter, sum(d.weight ORDER BY d.weight DESC, d.pattern_id) AS weight,
                   array_agg(d.pattern_id ORDER BY d.weight DESC, d.pattern_id) AS ids,
                   (array_agg(d.value ORDER BY d.weight DESC, d.pattern_id))[1] AS value, max(d.weight) AS heaviest
            FROM said d WHERE d.has_vote GROUP BY d.parameter, d.key) c
        ORDER BY c.parameter, c.weight DESC, c.heaviest DESC, c.ids[1])
    SELECT coalesce(k.parameter, g.key),
           CASE WHEN k.weight IS NULL THEN g.value
                WHEN NOT k.is_numeric THEN w.value
                WHEN k.keys = 1 THEN k.first
                WHEN k.is_whole THEN to_jsonb(round(m.number))
                ELSE to_jsonb(m.number) END,
           CASE WHEN k.weight IS NULL THEN 0
                WHEN k.is_numeric THEN k.weight / k.similarity
                ELSE k.weight / k.similarity * (w.weight / k.weight) END,
           CASE WHEN k.weight IS NULL THEN '{}' WHEN k.is_numeric THEN k.ids ELSE w.ids END
    FROM known k LEFT JOIN mean m USING (parameter) LEFT JOIN winner w USING (parameter)
    FULL JOIN jsonb_each(coalesce(optimized_params.defaults, '{}')) g ON g.key = k.parameter
    ORDER BY 1;
END $$;
COMMENT ON FUNCTION sona.optimized_params IS
    'Parameters for a query, from what worked in the k patterns nearest to it: numbers are interpolated, of anything else the '
    'value with the most weight wins; the default where nothing is known. source says from which patterns, confidence how '
    'sure it is, 0 to 1. Writes nothing.';

CREATE OR REPLACE FUNCTION sona.get_verdict(space text, pattern_id bigint)
RETURNS TABLE (parameter text, value jsonb, support bigint, quality double precision, improvement double precision,
               p double precision, p_adjusted double precision, e double precision, consistency double precision,
               decision integer, mean_precision double precision, mean_recall double precision)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM sona.space x WHERE x.name = get_verdict.space) THEN
        PERFORM sona._unknown_space(get_verdict.space);
    END IF;
    RETURN QUERY
    SELECT v.parameter, e.value, e.support, e.quality, e.improvement, e.p, e.p_adjusted, e.e, e.consistency, e.decision,
           e."precision", e.recall
    FROM sona.space s JOIN sona.verdict v USING (space_id), jsonb_to_recordset(v.evidence) AS e (
        value jsonb, support bigint, quality double precision, improvement double precision, p double precision,
        p_adjusted double precision, e double precision, consistency double precision, decision integer,
        "precision" double precision, recall double precision)
    WHERE s.name = get_verdict.space AND v.pattern_id = get_verdict.pattern_id
    ORDER BY v.parameter, e.decision DESC, e.quality DESC;
END $$;
COMMENT ON FUNCTION sona.get_verdict IS
    'Which values of which parameters worked in a pattern, the proven and the best first: outcomes of each value, their '
    'mean quality, how far it is above that of the others, p (Welch) and p adjusted for all that was used in the pattern, '
    'e of the standing decision, the share of pairs won, the decision (1 better, -1 worse, 0 nothing is proven), and means '
    'of precision and recall where they were fed back. No rows of a pattern that is not there.';

CREATE OR REPLACE FUNCTION sona.describe_pattern(
    space text, pattern_id bigint, title text DEFAULT NULL, description text DEFAULT NULL, content text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._changeable_space(describe_pattern.space);
BEGIN
    IF octet_length(describe_pattern.title) > 1000 OR octet_length(describe_pattern.description) > 65536
       OR octet_length(describe_pattern.content) > 1048576 THEN
        PERFORM sona._refuse('SN003', 'a text that is too long',
                             'expected a title of up to 1,000 bytes, a description of 64 kB and a content of 1 MB');
    END IF;
    UPDATE sona.pattern p
    SET title = nullif(coalesce(describe_pattern.title, p.title), ''),
        description = nullif(coalesce(describe_pattern.description, p.description), ''),
        content = nullif(coalesce(describe_pattern.content, p.content), '')
    WHERE p.space_id = s.space_id AND p.pattern_id = describe_pattern.pattern_id;
    IF NOT FOUND THEN
        PERFORM sona._refuse('SN003', format('there is no pattern %s', coalesce(describe_pattern.pattern_id::text, 'NULL')),
                             'it was merged or removed, or never was: sona.pattern_events says which');
    END IF;
END $$;
COMMENT ON FUNCTION sona.describe_pattern IS
    'Attaches text to a pattern; what is NULL stays, an empty text takes it away. Cycles keep it; of two patterns that '
    'become one the older keeps its own, and takes over what it has not.';
