-- Patterns near a query, and what is known in each. Reading writes nothing.

CREATE OR REPLACE FUNCTION sona.find_patterns(space text, query @vector@.vector, k integer DEFAULT 5)
RETURNS TABLE (pattern_id bigint, similarity double precision, cluster_size bigint, support bigint,
               avg_quality double precision, confidence double precision, best_strategy text, title text, description text,
               content text)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._searched_space(find_patterns.space, query, k);
BEGIN
    -- A query without a direction is unrelated to all.
    RETURN QUERY
    SELECT n.pattern_id, coalesce(1 - nullif(n.away, 'NaN'), 0), n.cluster_size, n.support, n.avg_quality, n.confidence,
           n.best_strategy, n.title, n.description, n.content
    FROM (SELECT p.*, p.centroid OPERATOR(@vector@.<=>) find_patterns.query AS away FROM sona.pattern p
          WHERE p.space_id = s.space_id ORDER BY away, p.pattern_id LIMIT find_patterns.k) n
    ORDER BY n.away, n.pattern_id;
END $$;
COMMENT ON FUNCTION sona.find_patterns IS
    'The k patterns nearest to a query, by cosine, nearest first; exact: it reads the patterns of the space.';

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
