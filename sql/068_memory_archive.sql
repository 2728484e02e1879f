-- What consolidation has removed from the memory graph, and the way back.

CREATE OR REPLACE VIEW sona.archive WITH (security_invoker = true) AS
SELECT s.name AS space, a.archive_id, a.run_id, a.entity, a.reason, a.archived_at, a.into_id, a.content
FROM sona.memory_archive a
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.archive IS 'What was removed from the memory graph, and why: sona.restore_memory brings it back.';

CREATE OR REPLACE FUNCTION sona._edge_flaw(
    kind text, source_kind text, source text, target_kind text, target text, weight double precision
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN kind IS NULL OR kind NOT IN ('co_access', 'pattern', 'hierarchy', 'creative', 'analogy', 'given')
        THEN format('an edge of kind %L', kind)
    WHEN source_kind IS NULL OR source_kind NOT IN ('item', 'pattern', 'concept', 'episode', 'procedure', 'dream')
        THEN format('an edge from a node of kind %L', source_kind)
    -- Analogies lead to a pattern of another space.
    WHEN target_kind IS NULL OR (target_kind NOT IN ('item', 'pattern', 'concept', 'episode', 'procedure', 'dream')
                                 AND NOT (kind = 'analogy' AND target_kind = 'elsewhere'))
        THEN format('an edge to a node of kind %L', target_kind)
    WHEN source IS NULL OR octet_length(source) NOT BETWEEN 1 AND 1000
         OR target IS NULL OR octet_length(target) NOT BETWEEN 1 AND 1000
        THEN 'an edge with an end that has no key, or one of more than 1000 bytes'
    WHEN (source_kind, source) = (target_kind, target) THEN 'an edge from a node to itself'
    -- NaN is greater than all numbers here.
    WHEN weight IS NULL OR weight < 0 OR weight > 1
        THEN format('an edge of weight %s, expected 0 to 1', coalesce(weight::text, 'NULL'))
END;
COMMENT ON FUNCTION sona._edge_flaw IS 'Why there is no such edge in a memory graph; NULL if there may be.';

CREATE OR REPLACE FUNCTION sona._node_flaw(kind text, key text, level integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN kind IS NULL OR kind NOT IN ('item', 'pattern', 'concept', 'episode', 'procedure', 'dream')
        THEN format('a node of kind %L', kind)
    WHEN key IS NULL OR octet_length(key) NOT BETWEEN 1 AND 500
        THEN format('a node with a key of %s bytes, expected 1 to 500', coalesce(octet_length(key), 0))
    WHEN level IS NULL OR level < 0 THEN format('a node of level %s', coalesce(level::text, 'NULL'))
END;
COMMENT ON FUNCTION sona._node_flaw IS 'Why there is no such node in a memory graph; NULL if there may be.';

CREATE OR REPLACE FUNCTION sona._node_state_flaw(
    importance double precision, quality double precision, access_count bigint
) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN importance IS NULL OR importance < 0 OR importance > 1
        THEN format('a node of importance %s, expected 0 to 1', coalesce(importance::text, 'NULL'))
    WHEN quality < 0 OR quality > 1 THEN format('a node of quality %s, expected 0 to 1', quality)
    -- Sums of many still are numbers.
    WHEN access_count IS NULL OR access_count NOT BETWEEN 0 AND 1000000000000000
        THEN format('a node with %s accesses', coalesce(access_count::text, 'NULL'))
END;
COMMENT ON FUNCTION sona._node_state_flaw IS 'Why no node of a memory graph is worth that; NULL if one may be.';

CREATE OR REPLACE FUNCTION sona._archived_flaw(entity text, content jsonb, dim integer) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    e sona.memory_edge%ROWTYPE;
    n sona.memory_node%ROWTYPE;
    state sona.memory_node_state%ROWTYPE;
    later sona.memory_node_state%ROWTYPE;
    flaw text;
BEGIN
    IF jsonb_typeof(content) IS DISTINCT FROM 'object' THEN RETURN 'it holds no row'; END IF;
    IF entity IN ('edge', 'edge before') THEN
        e := jsonb_populate_record(NULL::sona.memory_edge, content);
        flaw := sona._edge_flaw(e.kind, e.source_kind, e.source, e.target_kind, e.target, e.weight);
        IF flaw IS NOT NULL THEN RETURN flaw; END IF;
        IF e.origin IS NULL THEN RETURN 'an edge without an origin'; END IF;
        IF NOT coalesce(isfinite(e.created_at) AND isfinite(e.updated_at) AND isfinite(e.decayed_at), false) THEN
            RETURN 'an edge without a time at which it was made, changed or decayed';
        END IF;
        IF entity = 'edge before' AND NOT coalesce((content ->> 'after')::double precision BETWEEN 0 AND 1, false) THEN
            RETURN format('an edge that became one of weight %s, expected 0 to 1', coalesce(content ->> 'after', 'NULL'));
        END IF;
    ELSIF entity IN ('node', 'node before') THEN
        n := jsonb_populate_record(NULL::sona.memory_node, content);
        flaw := sona._node_flaw(n.kind, n.key, n.level);
        IF flaw IS NOT NULL THEN RETURN flaw; END IF;
        -- Ids are given one by one: the next one is a number, too.
        IF n.node_id IS NULL OR n.node_id NOT BETWEEN 1 AND 1000000000000000 THEN
            RETURN format('a node with the id %s', coalesce(n.node_id::text, 'NULL'));
        END IF;
        IF NOT coalesce(isfinite(n.created_at), false) THEN RETURN 'a node without a time at which it was made'; END IF;
        IF @vector@.vector_dims(n.embedding) <> dim THEN
            RETURN format('an embedding of %s dimensions, expected %s', @vector@.vector_dims(n.embedding), dim);
        END IF;
        IF (content ->> 'into_id')::bigint < 1 THEN RETURN 'a node that became part of none'; END IF;
        IF entity = 'node' THEN
            -- One that had lost its state has none.
            IF coalesce(jsonb_typeof(content -> 'state'), 'null') = 'null' THEN RETURN NULL; END IF;
            IF jsonb_typeof(content -> 'state') <> 'object' THEN RETURN 'a node whose state is none'; END IF;
            state := jsonb_populate_record(NULL::sona.memory_node_state, content -> 'state');
            IF state.consolidation_count IS NULL OR state.consolidation_count < 0 THEN
                RETURN 'a node without a count of consolidations';
            END IF;
        ELSE
            IF jsonb_typeof(content -> 'after') IS DISTINCT FROM 'object' THEN
                RETURN 'a node of which it does not say what it became';
            END IF;
            state := jsonb_populate_record(NULL::sona.memory_node_state, content);
            later := jsonb_populate_record(NULL::sona.memory_node_state, content -> 'after');
            -- What it was worth is not changed.
            state.importance := coalesce(state.importance, 0);
            flaw := sona._node_state_flaw(coalesce(later.importance, 0), later.quality, later.access_count);
            IF flaw IS NOT NULL THEN RETURN flaw; END IF;
            IF NOT coalesce(isfinite(later.last_access)
                            AND isfinite((content -> 'after' ->> 'created_at')::timestamptz), false) THEN
                RETURN 'a node that became one without a time';
            END IF;
        END IF;
        flaw := sona._node_state_flaw(state.importance, state.quality, state.access_count);
        IF flaw IS NOT NULL THEN RETURN flaw; END IF;
        IF NOT coalesce(isfinite(state.last_access), false) THEN RETURN 'a node without a time of its last access'; END IF;
    ELSE
        RETURN format('it is of kind %L', entity);
    END IF;
    RETURN NULL;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN SQLERRM;
END $$;
COMMENT ON FUNCTION sona._archived_flaw IS
    'What is wrong with an entry of the archive of a space with so many dimensions, so that it is not brought back; NULL if '
    'nothing is.';

CREATE OR REPLACE FUNCTION sona._restore_node(content jsonb, was_merged boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    INSERT INTO sona.memory_node
    SELECT r.* FROM jsonb_populate_record(NULL::sona.memory_node, content || jsonb_build_object('is_distinct',
        was_merged OR coalesce((content ->> 'is_distinct')::boolean, false))) r ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN false; END IF;
    INSERT INTO sona.memory_node_state
    SELECT r.* FROM jsonb_populate_record(NULL::sona.memory_node_state, (content -> 'state') ||
        jsonb_build_object('space_id', content -> 'space_id', 'node_id', content -> 'node_id')) r
    WHERE jsonb_typeof(content -> 'state') = 'object'
    ON CONFLICT DO NOTHING;
    RETURN true;
EXCEPTION WHEN not_null_violation THEN
    PERFORM sona._refuse('SN003', 'a node of the archive that lacks a value: ' || SQLERRM, 'leave its entry out');
END $$;
COMMENT ON FUNCTION sona._restore_node IS 'Brings back a node of the archive; false if it is there. It is not merged again.';

CREATE OR REPLACE FUNCTION sona._restore_edge(content jsonb, was_merged boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    -- Outcomes since the merge have come to another row of that name: both count, as where edges become one.
    INSERT INTO sona.memory_edge AS e SELECT r.* FROM jsonb_populate_record(NULL::sona.memory_edge, content) r
    ON CONFLICT (space_id, kind, source, target, source_kind, target_kind) DO UPDATE
    SET weight = 1 - (1 - e.weight) * (1 - excluded.weight) WHERE was_merged AND e.kind = 'co_access';
    RETURN FOUND;
EXCEPTION WHEN not_null_violation THEN
    PERFORM sona._refuse('SN003', 'an edge of the archive that lacks a value: ' || SQLERRM, 'leave its entry out');
END $$;
COMMENT ON FUNCTION sona._restore_edge IS 'Brings back an edge of the archive; false if it is there.';

CREATE OR REPLACE FUNCTION sona._restore_node_before(content jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    b sona.memory_node_state%ROWTYPE := jsonb_populate_record(NULL::sona.memory_node_state, content);
    a sona.memory_node_state%ROWTYPE := jsonb_populate_record(NULL::sona.memory_node_state, content -> 'after');
BEGIN
    UPDATE sona.memory_node n SET created_at = (content ->> 'created_at')::timestamptz
    WHERE n.space_id = b.space_id AND n.node_id = b.node_id
      AND n.created_at = (content -> 'after' ->> 'created_at')::timestamptz;
    -- What came since the merge is its own.
    UPDATE sona.memory_node_state t
    SET access_count = greatest(t.access_count - (a.access_count - b.access_count), 0),
        last_access = CASE WHEN t.last_access = a.last_access THEN b.last_access ELSE t.last_access END,
        quality = CASE WHEN t.quality IS NOT DISTINCT FROM a.quality THEN b.quality ELSE t.quality END
    WHERE t.space_id = b.space_id AND t.node_id = b.node_id;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION sona._restore_node_before IS
    'Takes out of a node what others have brought into it; false if it is not there.';

CREATE OR REPLACE FUNCTION sona._restore_edge_before(content jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    b sona.memory_edge%ROWTYPE := jsonb_populate_record(NULL::sona.memory_edge, content);
    a double precision := (content ->> 'after')::double precision;
    e sona.memory_edge%ROWTYPE;
BEGIN
    SELECT x.* INTO e FROM sona.memory_edge x WHERE x.space_id = b.space_id AND x.kind = b.kind AND x.source = b.source
        AND x.target = b.target AND x.source_kind = b.source_kind AND x.target_kind = b.target_kind FOR UPDATE;
    -- What is no weight somebody has put there: nothing is taken out of it.
    IF NOT FOUND OR e.weight < 0 OR e.weight > 1 THEN RETURN false; END IF;
    -- What somebody has set since the merge is theirs; cycles change no weight that was given.
    IF e.kind = 'given' AND (e.weight <> a OR e.updated_at IS DISTINCT FROM b.updated_at) THEN RETURN true; END IF;
    -- What it has gained since the merge is its own; of what it has lost it bears its share.
    IF e.weight = a THEN
        e.decayed_at := b.decayed_at;
    ELSIF e.weight > a THEN
        b.weight := 1 - (1 - b.weight) * (1 - (e.weight - a) / (1 - a));
    ELSE
        -- Where both are tiny, the product is no number of that type.
        b.weight := CASE WHEN least(b.weight, e.weight / a) < 1e-150 THEN 0 ELSE b.weight * (e.weight / a) END;
    END IF;
    IF b.weight > 0 THEN
        UPDATE sona.memory_edge x SET weight = b.weight, decayed_at = e.decayed_at
        WHERE x.space_id = b.space_id AND x.kind = b.kind AND x.source = b.source AND x.target = b.target
          AND x.source_kind = b.source_kind AND x.target_kind = b.target_kind;
    ELSE
        DELETE FROM sona.memory_edge x
        WHERE x.space_id = b.space_id AND x.kind = b.kind AND x.source = b.source AND x.target = b.target
          AND x.source_kind = b.source_kind AND x.target_kind = b.target_kind;
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION sona._restore_edge_before IS
    'Takes out of an edge what others have brought into it; false if it is not there. One that was only moved there goes; '
    'one whose weight somebody has set since stays.';

CREATE OR REPLACE FUNCTION sona.restore_memory(space text, archive_ids bigint[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
DECLARE
    s sona.space%ROWTYPE;
    own jsonb;
    first_merge bigint;
    entry sona.memory_archive%ROWTYPE;
    done bigint[] := '{}';
    is_back boolean;
    wrong text;
    dreams_are_out boolean;
BEGIN
    -- In the order of a cycle that writes, and of a deploy: flushes, which change edges too, wait, and nobody for each other.
    SELECT * INTO s FROM sona.space x WHERE x.name = restore_memory.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(restore_memory.space); END IF;
    PERFORM FROM sona.loop_schedule c WHERE c.space_id = s.space_id AND c.loop = 'deep' FOR NO KEY UPDATE;
    PERFORM sona._lock_learner(s.space_id);
    s := sona._changeable_space(restore_memory.space);
    INSERT INTO sona.memory_state (space_id) VALUES (s.space_id) ON CONFLICT DO NOTHING;
    PERFORM FROM sona.memory_state m WHERE m.space_id = s.space_id FOR UPDATE;
    -- What the archive says of the space is not trusted: it is no way into another one.
    own := jsonb_build_object('space_id', s.space_id);
    SELECT coalesce(u.id::text, 'NULL') INTO wrong FROM unnest(restore_memory.archive_ids) WITH ORDINALITY u (id, at)
    WHERE NOT EXISTS (SELECT FROM sona.memory_archive a WHERE a.space_id = s.space_id AND a.archive_id = u.id)
    ORDER BY u.at LIMIT 1;
    IF FOUND THEN
        PERFORM sona._refuse('SN003', format('there is no entry %s in the archive of space %L', wrong, restore_memory.space),
                             'expected ids that the column archive_id of sona.archive has for this space');
    END IF;
    -- Edges by dreams come back by new evidence alone.
    SELECT m.evidence ->> 'confirmed' = 'false' INTO dreams_are_out FROM sona.memory_state m WHERE m.space_id = s.space_id;
    SELECT a.archive_id::text INTO wrong FROM sona.memory_archive a WHERE a.space_id = s.space_id AND dreams_are_out
        AND a.archive_id = ANY (restore_memory.archive_ids) AND a.entity = 'edge' AND a.content ->> 'kind' = 'creative';
    IF FOUND THEN
        PERFORM sona._refuse('SN003', format('entry %s is an edge by dreams, and dreams do not help in this space', wrong),
                             'leave it out until a cycle has found that they do: see dreams_help of sona.integration');
    END IF;
    -- What became part of another comes back with all of that cycle, and of those since: what they left is made of it.
    SELECT min(a.run_id) INTO first_merge FROM sona.memory_archive a WHERE a.space_id = s.space_id AND a.is_merge
        AND (restore_memory.archive_ids IS NULL OR a.archive_id = ANY (restore_memory.archive_ids));
    -- The last one first: each finds what it has left. Who is there again meanwhile stays, and the entry in the archive.
    FOR entry IN SELECT a.* FROM sona.memory_archive a WHERE a.space_id = s.space_id
        AND (restore_memory.archive_ids IS NULL OR a.archive_id = ANY (restore_memory.archive_ids)
             OR (a.is_merge AND a.run_id >= first_merge)) ORDER BY a.archive_id DESC
    LOOP
        CONTINUE WHEN dreams_are_out AND entry.entity IN ('edge', 'edge before') AND entry.content ->> 'kind' = 'creative';
        wrong := sona._archived_flaw(entry.entity, entry.content, s.dim);
        IF wrong IS NOT NULL THEN
            PERFORM sona._refuse('SN003', format('entry %s of the archive is not what a space holds: %s', entry.archive_id, wrong),
                                 'leave it out; what is of a merge only its owner can: by deleting it from '
                                 'sona.memory_archive');
        END IF;
        IF entry.entity = 'node' THEN is_back := sona._restore_node(entry.content || own, entry.is_merge);
        ELSIF entry.entity = 'edge' THEN is_back := sona._restore_edge(entry.content || own, entry.is_merge);
        ELSIF entry.entity = 'node before' THEN is_back := sona._restore_node_before(entry.content || own);
        ELSE is_back := sona._restore_edge_before(entry.content || own);
        END IF;
        IF is_back THEN done := done || entry.archive_id; END IF;
    END LOOP;
    DELETE FROM sona.memory_archive a WHERE a.space_id = s.space_id AND a.archive_id = ANY (done);
    -- What was merged into what is there again stands for that, and no more for what that had become part of.
    WITH RECURSIVE gone AS MATERIALIZED (
        -- Others than those that came back were not looked at.
        SELECT a.archive_id, (a.content ->> 'node_id')::bigint AS node_id, (a.content ->> 'into_id')::bigint AS into_id
        FROM sona.memory_archive a WHERE a.space_id = s.space_id AND a.entity = 'node' AND a.into_id IS NOT NULL
            AND sona._archived_flaw(a.entity, a.content, s.dim) IS NULL),
    way AS (
        SELECT g.archive_id, g.into_id FROM gone g
        UNION
        SELECT w.archive_id, g.into_id FROM way w JOIN gone g ON g.node_id = w.into_id
        WHERE NOT EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = s.space_id AND n.node_id = w.into_id))
    UPDATE sona.memory_archive a SET into_id = w.into_id FROM way w
    WHERE a.space_id = s.space_id AND a.archive_id = w.archive_id AND a.into_id <> w.into_id
      AND EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = s.space_id AND n.node_id = w.into_id);
    -- An id that came back is not given again.
    UPDATE sona.memory_state m SET last_node_id = n.last
    FROM (SELECT max(x.node_id) AS last FROM sona.memory_node x WHERE x.space_id = s.space_id) n
    WHERE m.space_id = s.space_id AND n.last > m.last_node_id;
    RETURN cardinality(done);
END $$;
COMMENT ON FUNCTION sona.restore_memory IS
    'Brings back what consolidation has removed from the memory graph, all of it or these entries of sona.archive, as it '
    'was; how many rows. What is there again meanwhile stays as it is, and its entry stays in the archive; so do edges by '
    'dreams, while these do not help. What was merged comes back with all merges of that cycle and since, and is not merged '
    'again. Raises SN003 for an entry that is not in the archive, or whose content no space holds.';
