-- The memory graph: what is known, what it goes with, and what of that was dreamt.

CREATE OR REPLACE FUNCTION sona.index_nodes(space text, keep_exact integer DEFAULT 4000) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN sona._index_by_size('memory_node', space, keep_exact);
COMMENT ON FUNCTION sona.index_nodes IS
    'Makes an HNSW index of the memory nodes of a space that has more than keep_exact of them and no index; whether it has.';

CREATE OR REPLACE FUNCTION sona._edge_key(kind text, source_kind text, source text, target_kind text, target text)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- Of the parts, not of a text with separators: a key may hold whatever separates.
RETURN hash_array_extended(ARRAY[kind, source_kind, source, target_kind, target], 0);
COMMENT ON FUNCTION sona._edge_key IS 'A number for an edge of a space: two of a million have the same one by a chance of 3e-8.';

CREATE OR REPLACE FUNCTION sona._merged_nodes(space_id bigint)
RETURNS TABLE (kind text, key text, node_id bigint, into_kind text, into_key text)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 100
BEGIN ATOMIC
    -- Of one that was merged twice the last one holds.
    SELECT DISTINCT ON (1, 2) a.content ->> 'kind', a.content ->> 'key', i.node_id, i.kind, i.key
    FROM sona.memory_archive a
    -- From the archive to the nodes, one by one: a graph that has just grown has no statistics yet, and as a join each of
    -- its nodes was looked at for each row of the archive.
    CROSS JOIN LATERAL (SELECT n.node_id, n.kind, n.key FROM sona.memory_node n
                        WHERE n.space_id = a.space_id AND n.node_id = a.into_id LIMIT 1) i
    WHERE a.space_id = _merged_nodes.space_id AND a.entity = 'node' AND a.into_id IS NOT NULL
      AND (SELECT n.node_id FROM sona.memory_node n WHERE n.space_id = a.space_id AND n.kind = a.content ->> 'kind'
           AND n.key = a.content ->> 'key') IS NULL
    ORDER BY 1, 2, a.archive_id DESC;
END;
COMMENT ON FUNCTION sona._merged_nodes IS
    'Kind and key of nodes that were merged, and the node that stands for each, as long as nothing has taken its name again.';

CREATE OR REPLACE FUNCTION sona._check_node_kind(kind text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- The next cycle would archive it: it keeps a node for each pattern, and none without.
    IF kind = 'pattern' THEN
        PERFORM sona._refuse('SN003', 'a memory node of kind ''pattern''',
                             'the deep loop makes those of the patterns that there are: choose another kind');
    END IF;
    IF kind IS NULL OR kind NOT IN ('concept', 'episode', 'procedure', 'item', 'dream') THEN
        PERFORM sona._refuse('SN003', format('a memory node of kind %L', kind),
                             'expected concept, episode, procedure, item or dream');
    END IF;
    RETURN kind;
END $$;
COMMENT ON FUNCTION sona._check_node_kind IS 'A kind of memory nodes that can be added. Raises SN003 for others.';

CREATE OR REPLACE FUNCTION sona._share(value double precision, what text) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- NaN is greater than all numbers here.
    IF value < 0 OR value > 1 THEN
        PERFORM sona._refuse('SN003', format('the %s is %s', what, value), 'expected 0 to 1');
    END IF;
    RETURN value;
END $$;
COMMENT ON FUNCTION sona._share IS 'A number from 0 to 1, or NULL. Raises SN003 for others.';

CREATE OR REPLACE FUNCTION sona.add_memory_node(
    space text, kind text, key text, embedding @vector@.vector DEFAULT NULL, importance double precision DEFAULT NULL,
    quality double precision DEFAULT NULL, title text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._changeable_space(add_memory_node.space);
    made bigint;
BEGIN
    PERFORM sona._check_node_kind(add_memory_node.kind);
    PERFORM sona._share(add_memory_node.importance, 'importance');
    PERFORM sona._share(add_memory_node.quality, 'quality');
    IF add_memory_node.key IS NULL OR octet_length(add_memory_node.key) NOT BETWEEN 1 AND 500 THEN
        PERFORM sona._refuse('SN003', format('a key of %s bytes', coalesce(octet_length(add_memory_node.key), 0)),
                             'expected 1 to 500');
    END IF;
    -- Cycles keep those: one of yours would be overwritten, and go when the hierarchy is another one.
    IF add_memory_node.kind = 'concept' AND add_memory_node.key ~ '^learned [0-9]+$' THEN
        PERFORM sona._refuse('SN003', format('a concept with the key %L', add_memory_node.key),
                             'the deep loop gives its own concepts such keys: choose another one');
    END IF;
    IF @vector@.vector_dims(add_memory_node.embedding) <> s.dim THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(add_memory_node.embedding), s.dim);
    END IF;
    IF octet_length(add_memory_node.title) > 1000 THEN
        PERFORM sona._refuse('SN003', 'a title that is too long', 'expected up to 1,000 bytes');
    END IF;
    -- The row is a lock: whoever else gives ids waits.
    INSERT INTO sona.memory_state (space_id) VALUES (s.space_id) ON CONFLICT DO NOTHING;
    PERFORM FROM sona.memory_state m WHERE m.space_id = s.space_id FOR UPDATE;
    UPDATE sona.memory_node n
    SET embedding = coalesce(add_memory_node.embedding, n.embedding), title = coalesce(add_memory_node.title, n.title)
    WHERE n.space_id = s.space_id AND n.kind = add_memory_node.kind AND n.key = add_memory_node.key
    RETURNING n.node_id INTO made;
    IF made IS NULL THEN
        UPDATE sona.memory_state m SET last_node_id = m.last_node_id + 1, updated_at = now()
        WHERE m.space_id = s.space_id RETURNING m.last_node_id INTO made;
        INSERT INTO sona.memory_node (space_id, node_id, kind, key, embedding, title)
        VALUES (s.space_id, made, add_memory_node.kind, add_memory_node.key, add_memory_node.embedding,
                add_memory_node.title);
    END IF;
    INSERT INTO sona.memory_node_state AS t (space_id, node_id, importance, quality)
    VALUES (s.space_id, made, coalesce(add_memory_node.importance, 0.5), add_memory_node.quality)
    ON CONFLICT (space_id, node_id) DO UPDATE
    SET importance = coalesce(add_memory_node.importance, t.importance),
        quality = coalesce(add_memory_node.quality, t.quality);
    RETURN made;
END $$;
COMMENT ON FUNCTION sona.add_memory_node IS
    'Adds a node to the memory graph, or changes the one of that kind and key: an episode, a procedure, a concept of your '
    'own. What is NULL stays as it is; the importance of a new one is one half then. Returns its node_id.';

CREATE OR REPLACE FUNCTION sona.add_memory_edge(
    space text, source_kind text, source text, target_kind text, target text, weight double precision
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._changeable_space(add_memory_edge.space);
    lacking text;
BEGIN
    IF sona._share(add_memory_edge.weight, 'weight') IS NULL THEN
        PERFORM sona._refuse('SN003', 'the weight is NULL', 'expected 0 to 1');
    END IF;
    -- A cycle that is about to take one of the nodes away is waited for.
    PERFORM FROM sona.memory_state m WHERE m.space_id = s.space_id FOR SHARE;
    SELECT format('%L of kind %L', u.key, u.kind) INTO lacking
    FROM (VALUES (add_memory_edge.source_kind, add_memory_edge.source),
                 (add_memory_edge.target_kind, add_memory_edge.target)) u (kind, key)
    WHERE NOT EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = s.space_id AND n.kind = u.kind AND n.key = u.key)
    LIMIT 1;
    IF lacking IS NOT NULL THEN
        PERFORM sona._refuse('SN003', 'there is no memory node ' || lacking, 'add it with sona.add_memory_node');
    END IF;
    IF (add_memory_edge.source_kind, add_memory_edge.source) = (add_memory_edge.target_kind, add_memory_edge.target) THEN
        PERFORM sona._refuse('SN003', 'an edge from a node to itself', 'expected two nodes');
    END IF;
    -- An undirected edge stands once, source before target, as cycles sort them.
    INSERT INTO sona.memory_edge AS e (space_id, kind, source_kind, source, target_kind, target, weight, origin)
    SELECT s.space_id, 'given', min(u.kind) FILTER (WHERE u.at = 1), min(u.key) FILTER (WHERE u.at = 1),
           min(u.kind) FILTER (WHERE u.at = 2), min(u.key) FILTER (WHERE u.at = 2), add_memory_edge.weight, 'by hand'
    FROM (SELECT n.kind, n.key, row_number() OVER (ORDER BY n.key COLLATE "C", n.kind COLLATE "C") AS at
          FROM (VALUES (add_memory_edge.source_kind, add_memory_edge.source),
                       (add_memory_edge.target_kind, add_memory_edge.target)) n (kind, key)) u
    ON CONFLICT (space_id, kind, source, target, source_kind, target_kind) DO UPDATE
    SET weight = excluded.weight, updated_at = now(), decayed_at = now();
END $$;
COMMENT ON FUNCTION sona.add_memory_edge IS
    'Connects two nodes of the memory graph, or changes the weight, 0 to 1, of the edge that somebody has given before, '
    'whichever end they named first.';

CREATE OR REPLACE FUNCTION sona.forget_dreams(space text) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    s sona.space%ROWTYPE := sona._changeable_space(forget_dreams.space);
    standing bigint[];
    archived bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM sona.memory_edge e WHERE e.space_id = s.space_id AND e.kind = 'creative'
        RETURNING sona._edge_key(e.kind, e.source_kind, e.source, e.target_kind, e.target) AS edge)
    SELECT array_agg(edge) INTO standing FROM gone;
    WITH gone AS (
        DELETE FROM sona.memory_archive a WHERE a.space_id = s.space_id AND a.entity IN ('edge', 'edge before')
            AND a.content ->> 'kind' = 'creative'
        RETURNING a.entity, a.is_merge, sona._edge_key('creative', a.content ->> 'source_kind', a.content ->> 'source',
                                                       a.content ->> 'target_kind', a.content ->> 'target') AS edge)
    -- What became part of another edge is counted with that.
    SELECT array_agg(edge) INTO archived FROM gone WHERE entity = 'edge' AND NOT is_merge;
    RETURN (SELECT count(DISTINCT edge) FROM unnest(standing || archived) edge);
END $$;
COMMENT ON FUNCTION sona.forget_dreams IS
    'Deletes all edges that dreams have made, those in the archive, too; how many. What is dreamt later may make others: '
    'see the settings of the deep loop.';

CREATE OR REPLACE FUNCTION sona._near_nodes(space_id bigint, dim integer) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    indexed boolean := sona._vectors_index('memory_node', space_id) IS NOT NULL;
BEGIN
    -- Literals: a partial index on an expression serves only the very same expression and predicate.
    RETURN format(
        'SELECT n.kind, n.key, coalesce(1 - nullif(n.embedding OPERATOR(@vector@.<=>) $1, ''NaN''), 0) AS similarity'
        ' FROM sona.memory_node n WHERE n.space_id = %s%s'
        ' ORDER BY %s OPERATOR(@vector@.<=>) $1%s LIMIT $2', coalesce(space_id, 0),
        CASE WHEN indexed THEN '' ELSE ' AND n.embedding IS NOT NULL' END,
        CASE WHEN indexed THEN '(n.embedding::' || sona._indexed_type(dim) || ')' ELSE 'n.embedding' END,
        CASE WHEN indexed THEN '::' || sona._indexed_type(dim) ELSE ', n.node_id' END);
END $$;
COMMENT ON FUNCTION sona._near_nodes IS 'A statement that finds the $2 memory nodes nearest to $1.';

CREATE OR REPLACE FUNCTION sona._spreading_kinds() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- Analogies lead to another space.
RETURN '{co_access,pattern,hierarchy,creative,given}'::text[];
COMMENT ON FUNCTION sona._spreading_kinds IS 'Kinds of edges over which activation spreads.';

CREATE OR REPLACE FUNCTION sona._has_edge(space_id bigint, kind text, key text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN EXISTS (
    SELECT FROM sona.memory_edge e
    WHERE e.space_id = _has_edge.space_id AND e.kind = ANY (sona._spreading_kinds()) AND e.weight > 0
      AND e.source_kind = _has_edge.kind AND e.source = _has_edge.key)
    OR EXISTS (
    SELECT FROM sona.memory_edge e
    WHERE e.space_id = _has_edge.space_id AND e.kind = ANY (sona._spreading_kinds()) AND e.weight > 0
      AND e.target_kind = _has_edge.kind AND e.target = _has_edge.key);
COMMENT ON FUNCTION sona._has_edge IS 'Whether a node of the memory graph has an edge over which activation spreads.';

CREATE OR REPLACE FUNCTION sona._spread(
    space_id bigint, kinds text[], keys text[], masses double precision[], hops integer, factor double precision
) RETURNS TABLE (kind text, key text, mass double precision, hop integer)
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- Names of nodes that were merged, and of those that stand for them: edges of outcomes since lead to the old names.
    gone_kinds text[];
    gone_keys text[];
    into_kinds text[];
    into_keys text[];
BEGIN
    SELECT array_agg(g.kind), array_agg(g.key), array_agg(g.into_kind), array_agg(g.into_key)
    INTO gone_kinds, gone_keys, into_kinds, into_keys
    FROM sona._merged_nodes(_spread.space_id) g WHERE hops > 0;
    IF gone_keys IS NOT NULL THEN
        SELECT array_agg(m.kind), array_agg(m.key), array_agg(m.mass) INTO kinds, keys, masses
        FROM (SELECT coalesce(g.into_kind, u.kind) AS kind, coalesce(g.into_key, u.key) AS key, sum(u.mass) AS mass
              FROM unnest(kinds, keys, masses) u (kind, key, mass)
              LEFT JOIN unnest(gone_kinds, gone_keys, into_kinds, into_keys) g (kind, key, into_kind, into_key)
                ON g.kind = u.kind AND g.key = u.key GROUP BY 1, 2) m;
    END IF;
    FOR at IN 1 .. least(hops, 10) LOOP
        EXIT WHEN keys IS NULL;
        -- An edge is stored once, and passed both ways. What is no weight, NaN among it, nobody has checked: rows can be
        -- inserted by hand.
        WITH wave AS MATERIALIZED (SELECT u.* FROM unnest(kinds, keys, masses) u (kind, key, mass)),
        gone AS MATERIALIZED (
            SELECT u.* FROM unnest(gone_kinds, gone_keys, into_kinds, into_keys) u (kind, key, into_kind, into_key)),
        named AS MATERIALIZED (
            SELECT w.kind AS from_kind, w.key AS from_key, w.mass, w.kind, w.key FROM wave w
            UNION ALL
            SELECT w.kind, w.key, w.mass, g.kind, g.key FROM wave w JOIN gone g ON g.into_kind = w.kind AND g.into_key = w.key),
        way AS (
            SELECT w.from_kind, w.from_key, w.mass, e.target_kind AS kind, e.target AS key, e.weight
            FROM named w JOIN sona.memory_edge e ON e.space_id = _spread.space_id AND e.source_kind = w.kind
              AND e.source = w.key AND e.kind = ANY (sona._spreading_kinds()) AND e.weight > 0 AND e.weight <= 1
            UNION ALL
            SELECT w.from_kind, w.from_key, w.mass, e.source_kind, e.source, e.weight
            FROM named w JOIN sona.memory_edge e ON e.space_id = _spread.space_id AND e.target_kind = w.kind
              AND e.target = w.key AND e.kind = ANY (sona._spreading_kinds()) AND e.weight > 0 AND e.weight <= 1),
        step AS (
            SELECT v.from_kind, v.from_key, v.mass, coalesce(g.into_kind, v.kind) AS kind, coalesce(g.into_key, v.key) AS key,
                   v.weight
            FROM way v LEFT JOIN gone g ON g.kind = v.kind AND g.key = v.key
            -- Not between two that are one by now.
            WHERE (v.from_kind, v.from_key) <> (coalesce(g.into_kind, v.kind), coalesce(g.into_key, v.key))),
        flow AS (
            SELECT t.kind, t.key, sum(t.mass * factor * t.weight / t.total) AS mass
            FROM (SELECT x.*, sum(x.weight) OVER (PARTITION BY x.from_kind, x.from_key) AS total FROM step x) t
            GROUP BY 1, 2)
        -- What has next to nothing passes next to nothing on.
        SELECT array_agg(f.kind), array_agg(f.key), array_agg(f.mass) INTO kinds, keys, masses
        FROM (SELECT * FROM flow ORDER BY mass DESC, kind, key LIMIT 2000) f;
        RETURN QUERY SELECT u.kind, u.key, u.mass, at FROM unnest(kinds, keys, masses) u (kind, key, mass);
    END LOOP;
END $$;
COMMENT ON FUNCTION sona._spread IS
    'What arrives at nodes of the memory graph in each hop from some that are active: each passes on a share (factor) of '
    'what has come to it, by the weights of its edges.';

CREATE OR REPLACE FUNCTION sona.related(
    space text, query @vector@.vector, hops integer DEFAULT 2, k integer DEFAULT 10, start integer DEFAULT 5,
    factor double precision DEFAULT 0.7
) RETURNS TABLE (kind text, key text, activation double precision, hop integer)
LANGUAGE plpgsql STABLE PARALLEL SAFE ROWS 10
SET search_path = pg_catalog, sona, pg_temp
SET hnsw.iterative_scan = 'strict_order'
SET hnsw.ef_search = 100 AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE := sona._searched_space(related.space, query, k);
    kinds text[];
    keys text[];
    masses double precision[];
BEGIN
    IF hops IS NULL OR hops NOT BETWEEN 0 AND 10 THEN
        PERFORM sona._refuse('SN003', format('hops are %s', coalesce(hops::text, 'NULL')), 'expected 0 to 10');
    END IF;
    IF start IS NULL OR start NOT BETWEEN 1 AND 100 THEN
        PERFORM sona._refuse('SN003', format('start is %s', coalesce(start::text, 'NULL')), 'expected 1 to 100 nodes');
    END IF;
    IF sona._share(factor, 'factor') IS NULL THEN
        PERFORM sona._refuse('SN003', 'the factor is NULL', 'expected 0 to 1');
    END IF;
    EXECUTE 'SELECT array_agg(n.kind), array_agg(n.key), array_agg(n.similarity) FROM (' || sona._near_nodes(s.space_id, s.dim)
        || ') n WHERE n.similarity > 0' INTO kinds, keys, masses USING query, start;
    RETURN QUERY
    SELECT u.kind, u.key, sum(u.mass), min(u.hop)
    FROM (SELECT n.*, 0 AS hop FROM unnest(kinds, keys, masses) n (kind, key, mass)
          UNION ALL SELECT * FROM sona._spread(s.space_id, kinds, keys, masses, hops, factor)) u
    GROUP BY 1, 2 HAVING min(u.hop) > 0 OR hops = 0 ORDER BY 3 DESC, 1, 2 LIMIT k;
END $$;
COMMENT ON FUNCTION sona.related IS
    'The k nodes of the memory graph to which activation spreads from those nearest to a query: each passes on a share '
    '(factor) of what it has, by the weights of its edges, hop by hop. Those it starts from are left out, unless hops is 0.';

CREATE OR REPLACE VIEW sona.memory WITH (security_invoker = true) AS
SELECT s.name AS space, n.node_id, n.kind, n.key, n.title, n.level, t.importance, t.quality, t.access_count, t.last_access,
       t.consolidation_count, n.created_at, n.embedding
FROM sona.memory_node n
JOIN sona.space s USING (space_id)
JOIN sona.memory_node_state t USING (space_id, node_id);
COMMENT ON VIEW sona.memory IS 'Nodes of the memory graph.';

CREATE OR REPLACE VIEW sona.edges WITH (security_invoker = true) AS
SELECT s.name AS space, e.kind, e.source_kind, e.source, e.target_kind, e.target, e.weight, e.origin, e.created_at,
       e.updated_at, e.decayed_at
FROM sona.memory_edge e
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.edges IS 'Edges of the memory graph; creative ones are dreamt.';

CREATE OR REPLACE VIEW sona.dreams WITH (security_invoker = true) AS
SELECT s.name AS space, d.dream_id, d.run_id, d.created_at,
       ARRAY(SELECT coalesce(n.kind || ' ' || n.key, 'gone') FROM unnest(d.nodes) WITH ORDINALITY u (id, at)
             LEFT JOIN sona.memory_node n ON n.space_id = d.space_id AND n.node_id = u.id ORDER BY u.at) AS path,
       d.kinds, d.creative_jumps, d.novelty, d.coherence, d.utility, d.diversity, d.quality, d.phi, d.phi_threshold,
       d.is_integrated, d.reason
FROM sona.dream d
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.dreams IS
    'Walks over the memory graph: where they led, what they are worth, how integrated their nodes are (phi), and whether '
    'and why they were taken into the graph.';

CREATE OR REPLACE VIEW sona.concepts WITH (security_invoker = true) AS
SELECT s.name AS space, n.node_id, n.key AS concept, n.level, n.title, t.quality, t.access_count,
       ARRAY(SELECT e.target_kind || ' ' || e.target FROM sona.memory_edge e
             WHERE e.space_id = n.space_id AND e.kind = 'hierarchy' AND e.source_kind = n.kind AND e.source = n.key
             ORDER BY e.target_kind, length(e.target), e.target) AS children
FROM sona.memory_node n
JOIN sona.space s USING (space_id)
JOIN sona.memory_node_state t USING (space_id, node_id)
WHERE n.kind = 'concept' AND n.level > 0;
COMMENT ON VIEW sona.concepts IS 'Patterns of patterns: the hierarchy that the deep loop has found.';

CREATE OR REPLACE VIEW sona.integration WITH (security_invoker = true) AS
SELECT s.name AS space, m.consolidated_at, (m.system ->> 'phi')::double precision AS phi,
       (m.system ->> 'chance')::double precision AS chance, m.system -> 'patterns' AS patterns, m.system ->> 'reason' AS reason,
       (m.evidence ->> 'confirmed')::boolean AS dreams_help, (m.evidence ->> 'auc')::double precision AS dream_auc,
       (m.evidence ->> 'control')::double precision AS control_auc, m.evidence ->> 'reason' AS dream_reason, m.run_id, m.updated_at
FROM sona.memory_state m
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.integration IS
    'How much the patterns of a space are one system (phi, nats, beside what chance gives), and whether its dreams predict '
    'what goes together.';
