-- What consolidation has removed from the memory graph, and the way back.

CREATE OR REPLACE VIEW sona.archive WITH (security_invoker = true) AS
SELECT s.name AS space, a.archive_id, a.run_id, a.entity, a.reason, a.archived_at, a.into_id, a.content
FROM sona.memory_archive a
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.archive IS 'What was removed from the memory graph, and why: sona.restore_memory brings it back.';

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
    IF NOT FOUND THEN RETURN false; END IF;
    -- What somebody has set since the merge is theirs; cycles change no weight that was given.
    IF e.kind = 'given' AND (e.weight <> a OR e.updated_at IS DISTINCT FROM b.updated_at) THEN RETURN true; END IF;
    -- What it has gained since the merge is its own; of what it has lost it bears its share.
    IF e.weight = a THEN
        e.decayed_at := b.decayed_at;
    ELSIF e.weight > a THEN
        b.weight := 1 - (1 - b.weight) * (1 - (e.weight - a) / (1 - a));
    ELSE
        b.weight := b.weight * e.weight / a;
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
        CONTINUE WHEN dreams_are_out AND entry.entity = 'edge' AND entry.content ->> 'kind' = 'creative';
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
        SELECT a.archive_id, (a.content ->> 'node_id')::bigint AS node_id, (a.content ->> 'into_id')::bigint AS into_id
        FROM sona.memory_archive a WHERE a.space_id = s.space_id AND a.entity = 'node' AND a.into_id IS NOT NULL),
    way AS (
        SELECT g.archive_id, g.into_id FROM gone g
        UNION
        SELECT w.archive_id, g.into_id FROM way w JOIN gone g ON g.node_id = w.into_id
        WHERE NOT EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = s.space_id AND n.node_id = w.into_id))
    UPDATE sona.memory_archive a SET into_id = w.into_id FROM way w
    WHERE a.space_id = s.space_id AND a.archive_id = w.archive_id AND a.into_id <> w.into_id
      AND EXISTS (SELECT FROM sona.memory_node n WHERE n.space_id = s.space_id AND n.node_id = w.into_id);
    RETURN cardinality(done);
END $$;
COMMENT ON FUNCTION sona.restore_memory IS
    'Brings back what consolidation has removed from the memory graph, all of it or these entries of sona.archive, as it '
    'was; how many rows. What is there again meanwhile stays as it is, and its entry stays in the archive; so do edges by '
    'dreams, while these do not help. What was merged comes back with all merges of that cycle and since, and is not merged '
    'again. Raises SN003 for an entry that is not in the archive.';
