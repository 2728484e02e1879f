-- Row-level security: a role sees the spaces that were granted to it, or to a role that it is a member of. The grants
-- are rows of a table, never a session setting that a caller could set. Forced: the owner is no exception.

CREATE OR REPLACE FUNCTION sona._is_member(role_name text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE WHEN to_regrole(quote_ident(role_name)) IS NULL THEN false
            ELSE pg_has_role(current_user, role_name::name, 'MEMBER') END;
COMMENT ON FUNCTION sona._is_member IS 'Whether the caller is, or is a member of, a role; false for a role that is gone.';

DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT c.oid::regclass AS name, c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname = 'space_id'
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS own_grants ON %s', part.name);
        EXECUTE format('DROP POLICY IF EXISTS reads ON %s', part.name);
        EXECUTE format('DROP POLICY IF EXISTS writes ON %s', part.name);
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', part.name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', part.name);
        IF part.relname = 'space_grant' THEN
            EXECUTE format('CREATE POLICY own_grants ON %s USING (sona._is_member(role_name)) WITH CHECK (true)',
                           part.name);
            CONTINUE;
        END IF;
        -- A subquery, not a function of the row: it runs once for a statement.
        EXECUTE format(
            'CREATE POLICY reads ON %s FOR SELECT USING (space_id IN (SELECT g.space_id FROM sona.space_grant g'
            ' WHERE sona._is_member(g.role_name)))', part.name);
        EXECUTE format(
            'CREATE POLICY writes ON %s USING (space_id IN (SELECT g.space_id FROM sona.space_grant g'
            ' WHERE g.may_write AND sona._is_member(g.role_name))) WITH CHECK (%s)', part.name,
            CASE part.relname WHEN 'space' THEN 'true'
            ELSE 'space_id IN (SELECT g.space_id FROM sona.space_grant g'
                 ' WHERE g.may_write AND sona._is_member(g.role_name))' END);
    END LOOP;
END $$;
