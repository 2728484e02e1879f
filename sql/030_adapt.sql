-- The adapted query, for any client that speaks SQL.

CREATE OR REPLACE FUNCTION sona._times(v @vector@.vector, factor double precision) RETURNS @vector@.vector
LANGUAGE sql IMMUTABLE PARALLEL SAFE
-- pgvector has no product with a number: a vector of equal components stands for it.
RETURN v OPERATOR(@vector@.*) array_fill(factor::real, ARRAY[@vector@.vector_dims(v)])::@vector@.vector;
COMMENT ON FUNCTION sona._times IS 'A vector times a number.';

CREATE OR REPLACE FUNCTION sona._mapped(space_id bigint, tiers text[], query @vector@.vector) RETURNS @vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    dim integer := @vector@.vector_dims(query);
    delta @vector@.vector;
BEGIN
    -- A factor that is too small to matter is left out, since the product refuses underflow.
    SELECT @vector@.sum(r.up OPERATOR(@vector@.*) array_fill(r.factor, ARRAY[dim])::@vector@.vector) INTO delta
    FROM (
        SELECT w.up, (- (query OPERATOR(@vector@.<#>) w.down))::real AS factor
        FROM sona.served_row w WHERE w.space_id = _mapped.space_id AND w.tier = ANY (tiers)
        -- In one order, whatever was written last: a sum in another has other bits.
        ORDER BY w.tier, w.ordinal OFFSET 0
    ) r
    WHERE abs(r.factor) > 1e-15;
    -- The query itself where nothing was learned: adding zero would change the sign of a negative zero.
    IF delta IS NULL THEN RETURN _mapped.query; END IF;
    RETURN _mapped.query OPERATOR(@vector@.+) delta;
END $$;
COMMENT ON FUNCTION sona._mapped IS 'x + sum of (x . down) up over the rows of some tiers of the served map.';

CREATE OR REPLACE FUNCTION sona._familiar(similarity double precision, settings jsonb) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN least(greatest((coalesce(similarity, 0) - (settings ->> 'familiar_from')::double precision)
                      / (settings ->> 'familiar_width')::double precision, 0), 1);
COMMENT ON FUNCTION sona._familiar IS 'How familiar the ground is, 0 to 1, by the cosine to the nearest remembered query.';

CREATE OR REPLACE FUNCTION sona._strategy_for(s sona.space, g sona.strategist, query @vector@.vector) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    found_verdict integer;
BEGIN
    -- A strategy that has learned nothing answers as frozen does.
    IF g.weights IS NULL AND s.strategy NOT IN ('frozen', 'adapted', 'related') THEN RETURN 'frozen'; END IF;
    IF s.strategy = 'shadow' THEN RETURN 'frozen'; END IF;
    IF s.strategy <> 'learned' THEN RETURN s.strategy; END IF;
    IF NOT g.is_sane THEN RETURN 'frozen'; END IF;
    IF EXISTS (SELECT FROM sona.strategy_region r WHERE r.space_id = s.space_id AND r.verdict <> 0) THEN
        SELECT r.verdict INTO found_verdict FROM sona.strategy_region r WHERE r.space_id = s.space_id
        ORDER BY r.centroid OPERATOR(@vector@.<=>) query, r.region LIMIT 1;
        IF found_verdict <> 0 THEN RETURN CASE WHEN found_verdict > 0 THEN 'fusion' ELSE 'frozen' END; END IF;
    END IF;
    RETURN g.in_force;
END $$;
COMMENT ON FUNCTION sona._strategy_for IS
    'The strategy that answers a query: what the space is set to or, where that is learned, what is proven.';

CREATE OR REPLACE FUNCTION sona.adapt(space text, query @vector@.vector) RETURNS @vector@.vector
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    s sona.space%ROWTYPE;
    g sona.strategist%ROWTYPE;
    strategy text;
    base @vector@.vector;
    gate double precision;
    share double precision;
BEGIN
    SELECT * INTO s FROM sona.space x WHERE x.name = adapt.space;
    IF NOT FOUND THEN PERFORM sona._unknown_space(adapt.space); END IF;
    IF @vector@.vector_dims(query) <> s.dim THEN
        PERFORM sona._wrong_dimension(@vector@.vector_dims(query), s.dim);
    END IF;
    IF s.strategy = 'adapted' THEN RETURN sona._mapped(s.space_id, '{adapter,micro}', query); END IF;
    -- Not the state: it is large, and only the learner reads it.
    SELECT x.space_id, x.ordinal, x.events, x.in_force, x.is_sane, x.known, x.strange, x.unseen, x.weights, x.settings,
           x.remembered_until
    INTO g.space_id, g.ordinal, g.events, g.in_force, g.is_sane, g.known, g.strange, g.unseen, g.weights, g.settings,
         g.remembered_until
    FROM sona.strategist x WHERE x.space_id = s.space_id;
    strategy := sona._strategy_for(s, g, query);
    IF strategy IN ('frozen', 'boosted', 'related') THEN RETURN adapt.query; END IF;
    -- What was deployed asks as it did, until learning goes on.
    SELECT sona._familiar(max(1 - (p.embedding OPERATOR(@vector@.<=>) query)), g.settings) INTO gate
    FROM sona.remembered_query p WHERE p.space_id = s.space_id AND p.is_prototype
      AND (g.remembered_until IS NULL OR p.ordinal < g.remembered_until);
    base := @vector@.l2_normalize(query);
    share := CASE strategy WHEN 'stake' THEN gate * g.known + (1 - gate) * g.strange ELSE gate END;
    -- A share that is too small to matter would underflow, which the product refuses.
    IF share < 1e-6 THEN RETURN adapt.query; END IF;
    RETURN sona._times(base, 1 - share) OPERATOR(@vector@.+) sona._times(
        @vector@.l2_normalize(sona._mapped(
            s.space_id, CASE strategy WHEN 'stake' THEN '{careful}'::text[] ELSE '{proven}' END, base)), share);
END $$;
COMMENT ON FUNCTION sona.adapt IS
    'The query as the space has learned to ask it, as far as a vector can say it: by the strategy in force, and by how '
    'familiar the ground is. The query itself, bit for bit, while nothing is proven to be better. '
    'Call it once per statement: ORDER BY embedding <=> (SELECT sona.adapt($1, $2)).';
