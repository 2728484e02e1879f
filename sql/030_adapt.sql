-- The adapted query, for any client that speaks SQL.

CREATE OR REPLACE FUNCTION sona.adapt(space text, query @vector@.vector) RETURNS @vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    found_space bigint;
    expected integer;
    delta @vector@.vector;
BEGIN
    SELECT s.space_id, s.dim INTO found_space, expected FROM sona.space s WHERE s.name = adapt.space;
    IF found_space IS NULL THEN PERFORM sona._unknown_space(adapt.space); END IF;
    IF @vector@.vector_dims(query) <> expected THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(query), expected);
    END IF;
    -- pgvector has no product with a number: a vector of equal components stands for it. A factor that is too small
    -- to matter is left out, since the product refuses underflow.
    SELECT @vector@.sum(r.up OPERATOR(@vector@.*) array_fill(r.factor, ARRAY[expected])::@vector@.vector) INTO delta
    FROM (
        SELECT w.up, (- (query OPERATOR(@vector@.<#>) w.down))::real AS factor
        FROM sona.served_row w WHERE w.space_id = found_space
        OFFSET 0
    ) r
    WHERE abs(r.factor) > 1e-15;
    -- The query itself where nothing was learned: adding zero would change the sign of a negative zero.
    IF delta IS NULL THEN RETURN adapt.query; END IF;
    RETURN adapt.query OPERATOR(@vector@.+) delta;
END $$;
COMMENT ON FUNCTION sona.adapt IS
    'The query as the space has learned to ask it; the query itself, bit for bit, where nothing was learned. '
    'Call it once per statement: ORDER BY embedding <=> (SELECT sona.adapt($1, $2)).';
