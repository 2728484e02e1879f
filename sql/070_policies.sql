-- Row-level security: a role sees the spaces that were granted to it, or to a role that it is a member of. The grants
-- are rows of a table, never a session setting that a caller could set. Forced: the owner is no exception.

CREATE OR REPLACE FUNCTION sona._is_member(role_name text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN to_regrole(quote_ident(role_name)) IS NULL THEN false
            ELSE pg_has_role(current_user, role_name::name, 'MEMBER') END;
COMMENT ON FUNCTION sona._is_member IS 'Whether the caller is, or is a member of, a role; false for a role that is gone.';

CREATE OR REPLACE FUNCTION sona._grantable_spaces(caller name) RETURNS bigint[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp
-- Definer: a policy of the grants cannot read the grants under itself.
-- And so only for a role that whoever has logged in may act as: current_user is the owner here, and any name could be
-- given. A SECURITY DEFINER function of an application, owned by a role that its caller is no member of, can therefore
-- do all that its owner can in a space, but neither list nor change the grants to others.
RETURN CASE WHEN pg_has_role(session_user, _grantable_spaces.caller, 'MEMBER') THEN ARRAY(
    SELECT g.space_id FROM sona.space_grant g
    WHERE g.may_write AND CASE WHEN to_regrole(quote_ident(g.role_name)) IS NULL THEN false
                               ELSE pg_has_role(_grantable_spaces.caller, g.role_name::name, 'MEMBER') END)
ELSE '{}' END;
COMMENT ON FUNCTION sona._grantable_spaces IS
    'Ids of the spaces that a role may write, and grant therefore; none for a role that the login is no member of.';

CREATE OR REPLACE FUNCTION sona._may_grant(space_id bigint, caller name) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, sona, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- The first grant is for the session that drew the space's id, and has created it therefore.
    IF NOT EXISTS (SELECT FROM sona.space_grant g WHERE g.space_id = _may_grant.space_id) THEN
        RETURN _may_grant.space_id = currval(pg_get_serial_sequence('sona.space', 'space_id'));
    END IF;
    RETURN _may_grant.space_id = ANY (sona._grantable_spaces(_may_grant.caller));
EXCEPTION WHEN object_not_in_prerequisite_state THEN
    RETURN false;
END $$;
COMMENT ON FUNCTION sona._may_grant IS
    'Whether a role may grant a space: one that has no grants yet, as whoever creates it does, or one that it may write.';

DROP POLICY IF EXISTS reads ON sona.space_grant;
DROP POLICY IF EXISTS grants ON sona.space_grant;
DROP POLICY IF EXISTS changes ON sona.space_grant;
DROP POLICY IF EXISTS revokes ON sona.space_grant;
-- Who may grant a space sees who has it. A subquery, not a function of the row: it runs once for a statement.
CREATE POLICY reads ON sona.space_grant FOR SELECT
    USING (sona._is_member(role_name) OR space_id = ANY ((SELECT sona._grantable_spaces(current_user))::bigint[]));
CREATE POLICY grants ON sona.space_grant FOR INSERT WITH CHECK (sona._may_grant(space_id, current_user));
CREATE POLICY changes ON sona.space_grant FOR UPDATE
    USING (sona._may_grant(space_id, current_user)) WITH CHECK (sona._may_grant(space_id, current_user));
CREATE POLICY revokes ON sona.space_grant FOR DELETE USING (sona._may_grant(space_id, current_user));

DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT c.oid::regclass AS name, c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'space_id'
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', part.name);
        -- Not forced on the grants themselves: sona._may_grant, which their policies ask, must see all of them.
        CONTINUE WHEN part.relname = 'space_grant';
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', part.name);
        EXECUTE format('DROP POLICY IF EXISTS reads ON %s', part.name);
        EXECUTE format('DROP POLICY IF EXISTS writes ON %s', part.name);
        -- A subquery, not a function of the row: it runs once for a statement.
        EXECUTE format(
            'CREATE POLICY reads ON %s FOR SELECT USING (space_id IN (SELECT g.space_id FROM sona.space_grant g'
            ' WHERE sona._is_member(g.role_name)))', part.name);
        EXECUTE format(
            'CREATE POLICY writes ON %s USING (space_id IN (SELECT g.space_id FROM sona.space_grant g'
            ' WHERE g.may_write AND sona._is_member(g.role_name))) WITH CHECK (%s)', part.name,
            -- A new space has no grants yet: it is for the session that drew its id.
            CASE part.relname WHEN 'space' THEN 'sona._may_grant(space_id, current_user)'
            ELSE 'space_id IN (SELECT g.space_id FROM sona.space_grant g'
                 ' WHERE g.may_write AND sona._is_member(g.role_name))' END);
    END LOOP;
END $$;
