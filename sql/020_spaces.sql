-- Spaces and the application's own table of items.

DROP FUNCTION IF EXISTS sona.create_space(text, integer, text, double precision, double precision, boolean);
DROP FUNCTION IF EXISTS sona.create_space(
    text, integer, text, double precision, double precision, boolean, text, real[]);

CREATE OR REPLACE FUNCTION sona._check_strategy(strategy text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    known text[] := '{learned,frozen,adapted,familiar,boosted,stake,fusion,related,shadow}';
BEGIN
    IF NOT coalesce(strategy = ANY (known), false) THEN
        PERFORM sona._refuse('SN003', format('there is no strategy %L', strategy),
                             format('use one of %s; learned is whatever is proven', array_to_string(known, ', ')));
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_strategy IS 'Raises SN003 unless there is a strategy of that name.';

CREATE OR REPLACE FUNCTION sona._check_examination(examination real[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    IF examination IS NOT NULL AND NOT coalesce(
        array_ndims(examination) = 1 AND array_lower(examination, 1) = 1 AND cardinality(examination) <= 1000
        AND array_position(examination, NULL) IS NULL
        AND (SELECT bool_and(e >= 1e-6::real AND e <= 1) FROM unnest(examination) e), false) THEN
        PERFORM sona._refuse('SN003', 'examination is no list of probabilities, from 0.000001 to 1',
                             'give one for each position, like {1,0.7,0.5}; the last one holds beyond');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_examination IS 'Raises SN003 unless examination is NULL or a list of probabilities.';

CREATE OR REPLACE FUNCTION sona._check_control_share(share double precision) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    IF NOT coalesce(share = 0 OR share >= 0.001 AND share <= 0.5, false) THEN
        PERFORM sona._refuse('SN003', format('control_share is %s, expected 0, or 0.001 to 0.5', coalesce(share::text, 'NULL')),
                             '0.05 is usual; 0 has no control arm, and nothing to measure the lift by');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_control_share IS 'Raises SN003 unless a share of answers may be the control arm''s.';

CREATE OR REPLACE FUNCTION sona.create_space(
    name text, dim integer, embedder text DEFAULT NULL, reward_min double precision DEFAULT 0,
    reward_max double precision DEFAULT 1,
    implicit_feedback boolean DEFAULT false, strategy text DEFAULT 'learned', examination real[] DEFAULT NULL,
    control_share double precision DEFAULT 0.05
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    made bigint;
BEGIN
    IF create_space.name IS NULL OR btrim(create_space.name) = '' THEN
        PERFORM sona._refuse('SN003', 'the name of the space is empty', 'give it a name');
    END IF;
    PERFORM sona._check_id(create_space.name, 'the name of the space');
    IF create_space.embedder IS NOT NULL THEN PERFORM sona._check_id(create_space.embedder, 'the embedder'); END IF;
    IF implicit_feedback IS NULL THEN
        PERFORM sona._refuse('SN003', 'implicit_feedback is NULL, expected true or false', 'leave it out');
    END IF;
    IF dim IS NULL OR dim NOT BETWEEN 1 AND 16000 THEN
        PERFORM sona._refuse('SN003', format('the dimension is %s, expected 1 to 16000', coalesce(dim::text, 'NULL')),
                             'give the number of components that the embedding model returns');
    END IF;
    PERFORM sona._check_strategy(create_space.strategy);
    PERFORM sona._check_examination(create_space.examination);
    PERFORM sona._check_control_share(create_space.control_share);
    -- As they will be kept: two bounds may round to the same number.
    IF NOT coalesce(reward_min::real < reward_max::real AND reward_max::real > 0
                    AND reward_min > '-infinity' AND reward_max < 'infinity', false) THEN
        PERFORM sona._refuse('SN003', format('the range of rewards is %s to %s', reward_min, reward_max),
                             'give a finite lower bound below the upper one, and an upper one above 0');
    END IF;
    BEGIN
        -- Not RETURNING: the row-level policy shows the row only once the grant below is there.
        made := nextval(pg_get_serial_sequence('sona.space', 'space_id'));
        INSERT INTO sona.space (space_id, name, dim, embedder, reward_min, reward_max, implicit_feedback, strategy,
                                examination, control_share)
        OVERRIDING SYSTEM VALUE
        VALUES (made, create_space.name, create_space.dim, create_space.embedder, create_space.reward_min,
                create_space.reward_max, create_space.implicit_feedback, create_space.strategy, create_space.examination,
                create_space.control_share);
    EXCEPTION WHEN unique_violation THEN
        PERFORM sona._refuse('SN003', format('there is already a space %L', create_space.name), 'choose another name');
    END;
    INSERT INTO sona.space_grant (space_id, role_name) VALUES (made, current_user);
    INSERT INTO sona.learner (space_id) VALUES (made);
    INSERT INTO sona.strategist (space_id) VALUES (made);
    RETURN made;
END $$;
COMMENT ON FUNCTION sona.create_space IS
    'Creates a space for vectors of one dimension and one embedding model, and returns its id.';

CREATE OR REPLACE FUNCTION sona._check_reason(reason text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    IF length(reason) > 1000 THEN
        PERFORM sona._refuse('SN003', format('the reason has %s characters, expected at most 1000', length(reason)),
                             'shorten it');
    END IF;
END $$;
COMMENT ON FUNCTION sona._check_reason IS 'Raises SN003 if a reason is too long for the audit trail; NULL is none.';

DROP FUNCTION IF EXISTS sona.set_strategy(text, text);

CREATE OR REPLACE FUNCTION sona.set_strategy(space text, strategy text, reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
BEGIN
    PERFORM sona._check_strategy(set_strategy.strategy);
    PERFORM sona._check_reason(reason);
    s := sona._changeable_space(set_strategy.space);
    UPDATE sona.space x SET strategy = set_strategy.strategy, frozen_from = NULL WHERE x.space_id = s.space_id;
    -- What is measured of the lift begins anew.
    UPDATE sona.strategist g SET epoch = g.epoch + 1, changed_at = clock_timestamp(), suspected_share = 0
    WHERE g.space_id = s.space_id;
    PERFORM sona._log_deployment(s.space_id, 'strategy', s.strategy, set_strategy.strategy, reason);
END $$;
COMMENT ON FUNCTION sona.set_strategy IS
    'Sets what answers in a space: learned is whatever outcomes have proven; shadow learns and reports likewise, and '
    'answers as frozen does, the embedding as it is; any other strategy is fixed. The reason is for sona.deployments.';

CREATE OR REPLACE FUNCTION sona.set_control_share(space text, share double precision) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
BEGIN
    PERFORM sona._check_control_share(share);
    s := sona._changeable_space(set_control_share.space);
    UPDATE sona.space x SET control_share = share WHERE x.space_id = s.space_id;
    PERFORM sona._log_deployment(s.space_id, 'control', s.control_share::text, share::real::text, NULL);
END $$;
COMMENT ON FUNCTION sona.set_control_share IS
    'Sets the share of answers, 0 to 0.5, that the frozen embedding gives, to measure the lift by.';

CREATE OR REPLACE FUNCTION sona.set_transfer(space text, allowed boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    s sona.space%ROWTYPE;
BEGIN
    IF allowed IS NULL THEN
        PERFORM sona._refuse('SN003', 'whether patterns may be compared is NULL', 'expected true or false');
    END IF;
    s := sona._changeable_space(set_transfer.space);
    UPDATE sona.space x SET may_transfer = allowed WHERE x.space_id = s.space_id;
    PERFORM sona._log_deployment(s.space_id, 'transfer', s.may_transfer::text, allowed::text, NULL);
END $$;
COMMENT ON FUNCTION sona.set_transfer IS
    'Sets whether the deep loop compares the patterns of a space with those of other spaces that allow it too, of the same '
    'embedder. Nothing crosses otherwise.';

CREATE OR REPLACE FUNCTION sona._changeable_space(space text) RETURNS sona.space
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s sona.space%ROWTYPE;
BEGIN
    IF NOT EXISTS (SELECT FROM sona.space x WHERE x.name = space) THEN PERFORM sona._unknown_space(space); END IF;
    -- First the strategist, as a deploy does, and whoever freezes a space: in the other order each might wait for the other.
    PERFORM FROM sona.strategist g JOIN sona.space x USING (space_id) WHERE x.name = space FOR UPDATE OF g;
    SELECT * INTO s FROM sona.space x WHERE x.name = space FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM sona._refuse('42501', format('permission denied for space %L', space),
                             'ask for a grant in sona.space_grant that may write');
    END IF;
    RETURN s;
END $$;
COMMENT ON FUNCTION sona._changeable_space IS 'A space, locked against other changes. Raises 42501 if it may only be read.';

CREATE OR REPLACE FUNCTION sona._column_type(items regclass, item_column text) RETURNS regtype
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = items AND a.attname = item_column AND a.attnum > 0 AND NOT a.attisdropped);
COMMENT ON FUNCTION sona._column_type IS 'The type of a column of a table; NULL where there is none of that name.';

CREATE OR REPLACE FUNCTION sona._items_of(space_id bigint) RETURNS sona.item_source
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    source sona.item_source%ROWTYPE;
    again text := 'name the table and its columns again with sona.set_items(space, table, id_column, embedding_column)';
BEGIN
    SELECT * INTO source FROM sona.item_source i WHERE i.space_id = _items_of.space_id;
    IF NOT FOUND THEN RETURN NULL; END IF;
    -- Not to_regclass(items::text): the name of a table that is gone is its number, which is no name from Postgres 18 on.
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = source.items) THEN
        PERFORM sona._refuse('SN004', 'the items table of the space is gone', again);
    ELSIF sona._column_type(source.items, source.id_column) IS NULL THEN
        PERFORM sona._refuse('SN004', format('%s has no column %I any more', source.items, source.id_column), again);
    ELSIF sona._column_type(source.items, source.embedding_column) IS DISTINCT FROM '@vector@.vector'::regtype THEN
        PERFORM sona._refuse(
            'SN004', format('%s has no column %I of type vector any more', source.items, source.embedding_column), again);
    END IF;
    RETURN source;
END $$;
COMMENT ON FUNCTION sona._items_of IS
    'Where the items of a space are; NULL where that was never said. Raises SN004 if the table or one of its columns is '
    'gone.';

DROP FUNCTION IF EXISTS sona.set_items(text, regclass, name, name, integer);

CREATE OR REPLACE FUNCTION sona.set_items(
    space text, items regclass, id_column name, embedding_column name, sample_size integer DEFAULT NULL,
    filter_columns text[] DEFAULT '{}'
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    s sona.space%ROWTYPE;
    id_type text;
    total real;
    kind "char";
    sampled text := '';
    taken bigint;
    wrong integer;
    missing text;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = set_items.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(set_items.space); END IF;
    IF items IS NULL THEN
        PERFORM sona._refuse('SN003', 'no items table was given', 'pass it as a name, like ''public.documents''');
    END IF;
    IF id_column IS NULL OR embedding_column IS NULL THEN
        PERFORM sona._refuse('SN003', 'a column name is NULL', 'name the columns of item ids and of item embeddings');
    END IF;
    SELECT c.reltuples, c.relkind INTO total, kind FROM pg_class c WHERE c.oid = items;
    IF kind IS NULL OR kind NOT IN ('r', 'p', 'm', 'v', 'f') THEN
        PERFORM sona._refuse('SN003', format('%s is no table and no view', items),
                             'pass a table, a view or a foreign table, like ''public.documents''');
    END IF;
    -- One at a time: the sample is replaced as a whole.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.set_items', s.space_id));
    sample_size := coalesce(
        sample_size,
        (SELECT (l.settings -> 'adapter' ->> 'pool_size')::integer FROM sona.learner l WHERE l.space_id = s.space_id),
        4096);
    IF sample_size NOT BETWEEN 0 AND 1048576 THEN
        PERFORM sona._refuse('SN003', format('sample_size is %s, expected 0 to 1048576', sample_size), 'leave it out');
    END IF;
    SELECT format_type(a.atttypid, a.atttypmod) INTO id_type FROM pg_attribute a
    WHERE a.attrelid = items AND a.attname = id_column AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        PERFORM sona._refuse('SN003', format('%s has no column %I', items, id_column), 'name its column of item ids');
    END IF;
    IF sona._column_type(items, embedding_column) IS DISTINCT FROM '@vector@.vector'::regtype THEN
        PERFORM sona._refuse('SN003', format('%s has no column %I of type vector', items, embedding_column),
                             'name its column of item embeddings');
    END IF;
    SELECT coalesce(f, 'NULL') INTO missing FROM unnest(coalesce(filter_columns, '{}')) f
    WHERE sona._column_type(items, f) IS NULL;
    IF FOUND THEN
        PERFORM sona._refuse('SN003', format('%s has no column %I to filter by', items, missing),
                             'name columns of the items table');
    END IF;
    PERFORM sona._filtered_as(items, f) FROM unnest(filter_columns) f;

    IF total > 50 * sample_size AND sample_size > 0 AND kind IN ('r', 'p', 'm') THEN
        -- Pages enough for several times the sample: reading all of a large table would take minutes.
        sampled := format(' TABLESAMPLE SYSTEM (%s) REPEATABLE (0)', greatest(0.01, 100.0 * 10 * sample_size / total));
    END IF;
    DELETE FROM sona.item_sample i WHERE i.space_id = s.space_id;
    -- A table of chunks has an id several times: always the same row stands for it.
    EXECUTE format(
        'INSERT INTO sona.item_sample (space_id, ordinal, item_id, embedding)'
        ' SELECT $1, row_number() OVER (ORDER BY picked.h, picked.id) - 1, picked.id, picked.e'
        ' FROM (SELECT DISTINCT ON (3, 1) t.%1$I::text AS id, t.%2$I AS e, hashtextextended(t.%1$I::text, 0) AS h'
        '       FROM %3$s t%4$s WHERE t.%1$I IS NOT NULL AND t.%2$I IS NOT NULL ORDER BY 3, 1, 2 LIMIT $2) picked',
        id_column, embedding_column, items, sampled)
    USING s.space_id, sample_size;
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF total > 10000 AND kind IN ('r', 'm') AND NOT EXISTS (
        SELECT FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_am m ON m.oid = c.relam
        WHERE x.indrelid = items AND m.amname IN ('hnsw', 'ivfflat')) THEN
        RAISE WARNING '% has no vector index: every recall reads all of its % rows', items, total::bigint
            USING HINT = format('CREATE INDEX ON %s USING hnsw (%I vector_cosine_ops)', items, embedding_column);
    END IF;
    SELECT @vector@.vector_dims(i.embedding) INTO wrong FROM sona.item_sample i
    WHERE i.space_id = s.space_id AND @vector@.vector_dims(i.embedding) <> s.dim LIMIT 1;
    IF FOUND THEN PERFORM sona._wrong_dimension(wrong, s.dim); END IF;
    PERFORM sona._check_id(i.item_id, 'an item id') FROM sona.item_sample i
    WHERE i.space_id = s.space_id AND octet_length(i.item_id) NOT BETWEEN 1 AND 500;
    INSERT INTO sona.item_source (space_id, items, id_column, id_type, embedding_column, filter_columns)
    VALUES (s.space_id, items, id_column, id_type, embedding_column, coalesce(set_items.filter_columns, '{}'))
    ON CONFLICT (space_id) DO UPDATE
    SET items = excluded.items, id_column = excluded.id_column, id_type = excluded.id_type,
        embedding_column = excluded.embedding_column, filter_columns = excluded.filter_columns, sampled_at = now();
    RETURN taken;
END $$;
COMMENT ON FUNCTION sona.set_items IS
    'Names the application''s own table of items, which recall searches, and takes the sample that learning uses; returns its '
    'size. Of rows with the same id one is taken. If it is a view, every login that recalls or learns in the space runs '
    'its functions with its own rights: let only those call this whom all of these logins trust.';

CREATE OR REPLACE FUNCTION sona.drop_space(space text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    gone bigint;
    part regclass;
BEGIN
    SELECT s.space_id INTO gone FROM sona.space s WHERE s.name = drop_space.space;
    IF gone IS NULL THEN PERFORM sona._unknown_space(drop_space.space); END IF;
    -- One at a time: to drop an index each would wait for what the others have deleted to be committed.
    IF EXISTS (SELECT FROM sona.space s WHERE gone IN (s.space_id, s.standby_of) AND (
               sona._queries_index(s.space_id) IS NOT NULL OR sona._vectors_index('pattern', s.space_id) IS NOT NULL
               OR sona._vectors_index('memory_node', s.space_id) IS NOT NULL)) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('sona.drop_queries_index', 0));
    END IF;
    -- Who counts what is found reads the table of which an index goes, and would wait for rows that are deleted.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.count_accesses', gone));
    -- What an SQL client has recorded and not committed yet would stay under a space that is gone.
    PERFORM pg_advisory_xact_lock(hashtextextended('sona.record', gone));
    -- Before all rows, as a cycle does that writes: in another order each might wait for the other.
    PERFORM FROM sona.loop_schedule x WHERE x.space_id = gone ORDER BY x.loop FOR UPDATE;
    -- A flush in flight ends before, or finds the space gone. And who may only read would delete nothing, silently.
    PERFORM sona._lock_learner(gone);
    -- So does what the strategist takes in: it would write rows of a space that is gone.
    PERFORM FROM sona.strategist g WHERE g.space_id = gone FOR UPDATE;
    -- A change of the embedder may have come before.
    IF NOT EXISTS (SELECT FROM sona.space s WHERE s.name = drop_space.space AND s.space_id = gone) THEN
        RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = format(
            'another session has changed the embedder of space %L meanwhile', drop_space.space), HINT = 'delete it again';
    END IF;
    -- What is kept beside it while it changes its embedder holds the same; after it, as whoever switches locks them.
    PERFORM sona.drop_space(s.name) FROM sona.space s WHERE s.standby_of = gone;
    FOR part IN
        SELECT c.oid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'space_id'
        -- Of the audit trail nobody may delete a row: it goes with the row of the space.
        AND c.relname <> 'deployment'
        -- The grants last: the policies of the other tables read them.
        ORDER BY c.relname = 'space_grant', c.relname = 'space', c.relname
    LOOP
        -- Late, since it locks the table of all spaces; but while there are grants, which it asks.
        IF part = 'sona.space'::regclass AND sona._queries_index(gone) IS NOT NULL THEN
            PERFORM sona._drop_queries_index(gone, current_user);
        END IF;
        IF part = 'sona.space'::regclass THEN
            PERFORM sona._drop_vectors_index(of, gone, current_user) FROM unnest(ARRAY['pattern', 'memory_node']) of
            WHERE sona._vectors_index(of, gone) IS NOT NULL;
        END IF;
        EXECUTE format('DELETE FROM %s WHERE space_id = $1', part) USING gone;
    END LOOP;
END $$;
COMMENT ON FUNCTION sona.drop_space IS 'Deletes a space and everything recorded and learned in it.';
