-- Row-level security: a role sees the spaces that were granted to it, or to a role that it is a member of. The grants
-- are rows of a table, never a session setting that a caller could set. Forced: the owner is no exception.

CREATE OR REPLACE FUNCTION sona._is_member(role_name text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN to_regrole(quote_ident(role_name)) IS NULL THEN false
            ELSE pg_has_role(current_user, role_name::name, 'MEMBER') END;
COMMENT ON FUNCTION sona._is_member IS 'Whether the caller is, or is a member of, a role; false for a role that is gone.';

CREATE OR REPLACE FUNCTION sona._grantable_spaces(caller name) RETURNS bigint[]
LANGUAGE sql STABLE PARALLEL SAFE SECURITY DEFINER
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

DO $$
DECLARE
    granted constant text := 'space_id IN (SELECT g.space_id FROM sona.space_grant g WHERE sona._is_member(g.role_name))';
    writable constant text :=
        'space_id IN (SELECT g.space_id FROM sona.space_grant g WHERE g.may_write AND sona._is_member(g.role_name))';
    part record;
    found text;
    noted text;
    made boolean;
BEGIN
    FOR part IN
        SELECT c.oid::regclass AS name, c.relname, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'space_id'
    LOOP
        IF NOT part.enabled THEN
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', part.name);
        END IF;
        -- Not forced on the grants themselves: sona._may_grant, which their policies ask, must see all of them.
        IF NOT part.forced AND part.relname <> 'space_grant' THEN
            EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', part.name);
        END IF;
    END LOOP;

    FOR part IN
        SELECT c.oid, c.oid::regclass AS name, p.policy, p.definition
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        CROSS JOIN LATERAL (
            -- Who may grant a space sees who has it. Subqueries, not functions of the row: they run once for a statement.
            SELECT * FROM (VALUES
                ('reads', 'FOR SELECT USING (sona._is_member(role_name)'
                          ' OR space_id = ANY ((SELECT sona._grantable_spaces(current_user))::bigint[]))'),
                ('grants', 'FOR INSERT WITH CHECK (sona._may_grant(space_id, current_user))'),
                ('changes', 'FOR UPDATE USING (sona._may_grant(space_id, current_user))'
                            ' WITH CHECK (sona._may_grant(space_id, current_user))'),
                ('revokes', 'FOR DELETE USING (sona._may_grant(space_id, current_user))')) g (policy, definition)
            WHERE c.relname = 'space_grant'
            UNION ALL
            SELECT * FROM (VALUES
                ('reads', format('FOR SELECT USING (%s)', granted)),
                -- A new space has no grants yet: it is for the session that drew its id.
                ('writes', format('USING (%s) WITH CHECK (%s)', writable,
                    CASE c.relname WHEN 'space' THEN 'sona._may_grant(space_id, current_user)' ELSE writable END))) t
            WHERE c.relname <> 'space_grant') p
        WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'space_id'
    LOOP
        made := false;
        LOOP
            -- What it was made from, and what it is now, whoever has changed it.
            SELECT md5(concat_ws('|', part.definition, w.polcmd, w.polpermissive, w.polroles,
                                 pg_get_expr(w.polqual, w.polrelid), pg_get_expr(w.polwithcheck, w.polrelid))),
                   obj_description(w.oid, 'pg_policy')
            INTO found, noted FROM pg_policy w WHERE w.polrelid = part.oid AND w.polname = part.policy;
            -- One that is right is left alone: to make it anew would lock its table, and wait for all who use it.
            EXIT WHEN found = noted;
            IF made THEN
                EXECUTE format('COMMENT ON POLICY %I ON %s IS %L', part.policy, part.name, found);
                EXIT;
            END IF;
            EXECUTE format('DROP POLICY IF EXISTS %I ON %s', part.policy, part.name);
            EXECUTE format('CREATE POLICY %I ON %s %s', part.policy, part.name, part.definition);
            made := true;
        END LOOP;
    END LOOP;
END $$;
