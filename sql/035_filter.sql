-- Filters of recall: JSON as SQL over columns of the items table, of whatever type that has an order.

DROP FUNCTION IF EXISTS sona._comparison(text, text, text, jsonb);

CREATE OR REPLACE FUNCTION sona._btree_operator(compared regtype, strategy integer) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
-- By its class and not by its name: what "=" means for a type of an extension would depend on the search path.
RETURN (
    SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname)
    FROM pg_type t
    JOIN pg_opclass c ON c.opcdefault AND (
        c.opcintype IN (
            t.oid,
            CASE t.typtype WHEN 'e' THEN 'anyenum'::regtype WHEN 'r' THEN 'anyrange'::regtype
                           WHEN 'm' THEN 'anymultirange'::regtype END,
            CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN 'anyarray'::regtype END)
        OR EXISTS (SELECT FROM pg_cast b WHERE b.castsource = t.oid AND b.casttarget = c.opcintype
                                           AND b.castmethod = 'b' AND b.castcontext = 'i'))
    JOIN pg_type k ON k.oid = c.opcintype
    JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
    JOIN pg_amop a ON a.amopfamily = c.opcfamily AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype
        AND a.amopstrategy = _btree_operator.strategy
    JOIN pg_operator o ON o.oid = a.amopopr
    JOIN pg_namespace n ON n.oid = o.oprnamespace
    WHERE t.oid = _btree_operator.compared
    ORDER BY c.opcintype = t.oid DESC, k.typispreferred DESC LIMIT 1);
COMMENT ON FUNCTION sona._btree_operator IS
    'The operator with which a btree index compares values of a type, for a strategy from 1 (less) to 5 (greater); NULL '
    'where there is none.';

CREATE OR REPLACE FUNCTION sona._compared_as(item_type regtype) RETURNS regtype
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    t pg_type%ROWTYPE;
    part regtype;
BEGIN
    SELECT * INTO t FROM pg_type x WHERE x.oid = item_type;
    -- A value that is cut or rounded to fit the column would match rows that it does not equal.
    IF t.typtype = 'd' THEN RETURN sona._compared_as(t.typbasetype); END IF;
    IF item_type IN ('varchar'::regtype, 'name'::regtype, '"char"'::regtype) THEN RETURN 'text'::regtype; END IF;
    IF t.typsubscript = 'array_subscript_handler'::regproc THEN
        RETURN (SELECT e.typarray FROM pg_type e WHERE e.oid = sona._compared_as(t.typelem));
    END IF;
    SELECT r.rngsubtype INTO part FROM pg_range r WHERE item_type IN (r.rngtypid, r.rngmultitypid);
    IF FOUND AND sona._compared_as(part) IS DISTINCT FROM part THEN RETURN NULL; END IF;
    RETURN CASE WHEN sona._btree_operator(item_type, 3) IS NOT NULL THEN item_type END;
END $$;
COMMENT ON FUNCTION sona._compared_as IS
    'The type, without modifier, under which a filter compares a column of a type; NULL where it cannot be compared.';

CREATE OR REPLACE FUNCTION sona._filtered_as(items regclass, item_column text) RETURNS regtype
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    item_type regtype := sona._column_type(items, item_column);
    compared regtype := sona._compared_as(item_type);
BEGIN
    IF item_type IS NULL THEN
        PERFORM sona._refuse('SN004', format('%s has no column %I any more', items, item_column),
                             'it was declared as a column to filter by: name the columns again with sona.set_items');
    END IF;
    IF compared IS NULL THEN
        PERFORM sona._refuse(
            'SN003', format('a filter cannot compare %I: its type %s has no btree order', item_column, item_type),
            'filter by a column of another type, like one GENERATED ALWAYS AS (data ->> ''language'') STORED');
    END IF;
    RETURN compared;
END $$;
COMMENT ON FUNCTION sona._filtered_as IS
    'The type under which a filter compares a column of the items table; raises SN004 if the column is gone, SN003 if it '
    'cannot be compared.';

CREATE OR REPLACE FUNCTION sona._comparison(item_column text, compared regtype, operator text, operand jsonb) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    strategy integer := CASE operator WHEN 'lt' THEN 1 WHEN 'lte' THEN 2 WHEN 'gte' THEN 4 WHEN 'gt' THEN 5
                                      WHEN 'eq' THEN 3 WHEN 'ne' THEN 3 WHEN 'in' THEN 3 END;
    -- Not as regtype: that calls bpchar "character", which is one character long.
    type_name text := format_type(compared, -1);
    compares text := format('t.%I::%s %s ', item_column, type_name, sona._btree_operator(compared, strategy));
    one jsonb;
    literals text[] := '{}';
BEGIN
    IF strategy IS NULL THEN
        PERFORM sona._refuse('SN003', format('a filter on %I uses %L', item_column, operator),
                             'use eq, ne, lt, lte, gt, gte or in');
    END IF;
    IF jsonb_typeof(operand) = 'null' AND operator IN ('eq', 'ne') THEN
        RETURN format('t.%I IS %sNULL', item_column, CASE operator WHEN 'ne' THEN 'NOT ' END);
    END IF;
    IF operator = 'in' AND jsonb_typeof(operand) <> 'array' THEN
        PERFORM sona._refuse('SN003', format('a filter on %I has %s behind "in"', item_column, jsonb_typeof(operand)),
                             'give a list of values');
    END IF;
    FOR one IN SELECT e FROM jsonb_array_elements(
        CASE operator WHEN 'in' THEN operand ELSE jsonb_build_array(operand) END) e
    LOOP
        -- An expression and not the variable: of a variable, pg_input_is_valid remembers the type that it had first.
        IF jsonb_typeof(one) IN ('array', 'object', 'null')
            OR NOT pg_input_is_valid(one #>> '{}', format_type(compared, -1)) THEN
            PERFORM sona._refuse('SN003', format('a filter compares %I with %s', item_column, left(one::text, 100)),
                                 format('the column is of type %s: give a value of it', type_name));
        END IF;
        literals := literals || format('%L::%s', one #>> '{}', type_name);
    END LOOP;
    RETURN CASE
        WHEN operator = 'ne' THEN format('NOT (%s%s)', compares, literals[1])
        WHEN operator <> 'in' THEN compares || literals[1]
        -- An array of arrays is one of their elements.
        WHEN type_name LIKE '%[]' THEN
            coalesce('(' || (SELECT string_agg(compares || l, ' OR ') FROM unnest(literals) l) || ')', 'false')
        ELSE format('%sANY (ARRAY[%s]::%s[])', compares, array_to_string(literals, ', '), type_name) END;
END $$;
COMMENT ON FUNCTION sona._comparison IS
    'A comparison of a column of the items table with values, as SQL that an index on the column serves.';

CREATE OR REPLACE FUNCTION sona._condition(items regclass, filter_columns text[], filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE
SET search_path = pg_catalog, sona, pg_temp AS $$
DECLARE
    item_column text;
    wanted jsonb;
    compared regtype;
    parts text[] := '{}';
BEGIN
    IF jsonb_typeof(filter) <> 'object' THEN
        PERFORM sona._refuse('SN003', format('the filter is a JSON %s, expected an object', jsonb_typeof(filter)),
                             'pass {"column": value}, {"column": [values]} or {"column": {"gte": value}}');
    END IF;
    FOR item_column, wanted IN SELECT * FROM jsonb_each(filter) LOOP
        IF NOT coalesce(item_column = ANY (filter_columns), false) THEN
            PERFORM sona._refuse(
                'SN003', format('the filter names %I, expected one of the declared columns: %s', item_column,
                                coalesce(nullif(array_to_string(filter_columns, ', '), ''), 'there are none')),
                'declare it: sona.set_items(space, table, id_column, embedding_column, filter_columns => ''{...}'')');
        END IF;
        compared := sona._filtered_as(items, item_column);
        parts := parts || CASE jsonb_typeof(wanted)
            WHEN 'array' THEN sona._comparison(item_column, compared, 'in', wanted)
            WHEN 'object' THEN (
                SELECT coalesce(string_agg(sona._comparison(item_column, compared, o.key, o.value), ' AND '), 'true')
                FROM jsonb_each(wanted) o)
            ELSE sona._comparison(item_column, compared, 'eq', wanted) END;
    END LOOP;
    RETURN coalesce(array_to_string(parts, ' AND '), '');
END $$;
COMMENT ON FUNCTION sona._condition IS
    'A filter as SQL over the items table, called t: {"column": value}, {"column": [values]}, {"column": {"gte": value}}.';
