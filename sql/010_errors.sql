-- Errors: own SQLSTATEs, so that clients of any language can tell them apart.
-- SN001 unknown space, SN002 wrong dimension, SN003 invalid input, SN004 a setting that cannot be honoured,
-- SN005 a version that is not there, SN006 a damaged one, SN007 a trajectory that is not there, SN008 a loop that is not,
-- SN009 no table of items to search.

CREATE OR REPLACE FUNCTION sona._refuse(state text, message text, hint text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = state, MESSAGE = message, HINT = hint;
END $$;
COMMENT ON FUNCTION sona._refuse IS 'Raises an error with an own SQLSTATE, what was found, and the way out.';

CREATE OR REPLACE FUNCTION sona._unknown_space(space text) RETURNS void
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sona._refuse('SN001', format('there is no space %L', space),
                    'create it with sona.create_space(name, dim), or look at sona.status for the ones there are');
COMMENT ON FUNCTION sona._unknown_space IS 'Raises SN001.';

CREATE OR REPLACE FUNCTION sona._wrong_dimension(found integer, expected integer) RETURNS void
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN sona._refuse('SN002', format('the vector has %s dimensions, expected %s', found, expected),
                    'use the embedding model that the space was created for, or create a space of that dimension');
COMMENT ON FUNCTION sona._wrong_dimension IS 'Raises SN002.';

CREATE OR REPLACE FUNCTION sona.new_trajectory_id() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
-- RFC 9562, version 7: Postgres has uuidv7() from 18 on.
RETURN encode(
    set_byte(
        overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
        6, (get_byte(uuid_send(gen_random_uuid()), 6) & 15) | 112),
    'hex')::uuid;
COMMENT ON FUNCTION sona.new_trajectory_id IS 'A time-ordered UUID (version 7) for a new trajectory.';
