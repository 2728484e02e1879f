-- Search with what was learned, over the application's own table.

CREATE OR REPLACE FUNCTION sona._search_items(space_id bigint, query @vector@.vector, k integer)
RETURNS TABLE (item_id text, rank integer, score real)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp
-- Without it an index gives at most hnsw.ef_search items, silently.
SET hnsw.iterative_scan = 'relaxed_order'
SET ivfflat.iterative_scan = 'relaxed_order' AS $$
DECLARE
    source sona.item_source%ROWTYPE;
BEGIN
    SELECT * INTO source FROM sona.item_source i WHERE i.space_id = _search_items.space_id;
    IF to_regclass(source.items::text) IS NULL THEN
        PERFORM sona._refuse('SN004', 'the space has no items table to search',
                             'name it with sona.set_items(space, table, id_column, embedding_column)');
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT f.id, row_number() OVER (ORDER BY f.distance, f.ordinal)::integer,'
        -- A vector of zeros has no direction: its score is that of what is unrelated, and no NaN.
        ' coalesce(1 - nullif(f.distance, ''NaN''), 0)::real'
        ' FROM (SELECT n.*, row_number() OVER () AS ordinal'
        '       FROM (SELECT t.%1$I::text AS id, t.%2$I OPERATOR(@vector@.<=>) $1 AS distance FROM %3$s t'
        '             WHERE t.%2$I IS NOT NULL ORDER BY t.%2$I OPERATOR(@vector@.<=>) $1 LIMIT $2) n) f'
        ' ORDER BY 2',
        source.id_column, source.embedding_column, source.items)
    USING query, k;
END $$;
COMMENT ON FUNCTION sona._search_items IS 'The k items nearest to a query by cosine, with the rights of the caller.';

CREATE OR REPLACE FUNCTION sona.recall(space text, query @vector@.vector, k integer DEFAULT 10)
RETURNS TABLE (
    trajectory_id uuid, item_id text, rank integer, score real, arm text, version bigint, strategy text, propensity real
)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    found_space bigint;
    in_force bigint;
    learned boolean;
BEGIN
    IF k IS NULL OR k NOT BETWEEN 1 AND 10000 THEN
        PERFORM sona._refuse('SN003', format('k is %s, expected 1 to 10000', coalesce(k::text, 'NULL')),
                             'ask for fewer items');
    END IF;
    IF query IS NULL THEN
        PERFORM sona._refuse('SN003', 'the query is NULL', 'pass the embedding of the query');
    END IF;
    SELECT s.space_id, l.version, l.events > 0 INTO found_space, in_force, learned
    FROM sona.space s JOIN sona.learner l USING (space_id) WHERE s.name = recall.space;
    IF found_space IS NULL THEN PERFORM sona._unknown_space(recall.space); END IF;
    RETURN QUERY
    SELECT t.made, f.item_id, f.rank, f.score, 'learned'::text, in_force,
           CASE WHEN learned THEN 'adapted' ELSE 'frozen' END::text, 1::real
    FROM (SELECT sona.new_trajectory_id() AS made OFFSET 0) t,
         sona._search_items(found_space, sona.adapt(recall.space, query), k) f
    ORDER BY f.rank;
END $$;
COMMENT ON FUNCTION sona.recall IS
    'The k best items for a query, by what the space has learned. Writes nothing; hand trajectory_id, arm, version, '
    'strategy and propensity back when the outcome is recorded.';
