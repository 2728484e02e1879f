/*
 * A client of sona in C: all it needs is libpq and SQL.
 *
 *     cc client.c -I"$(pg_config --includedir)" -L"$(pg_config --libdir)" -lpq -o client
 *     ./client CONNINFO SPACE TABLE QUERY
 *
 * TABLE (id, embedding) holds the items of SPACE: sona.set_items has named it. QUERY is the embedding of a question,
 * '[0.1,0.2,...]'. What is recorded here is learned by `sona worker instant`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

enum { SHOWN = 3 };

static PGconn *connection;

/* Ends the program: SQLSTATE is there for programs, the message and its hint are for people. */
static void fail(const PGresult *result)
{
    const char *state = result ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;
    fprintf(stderr, "%s %s", state ? state : "no connection:", PQerrorMessage(connection));
    exit(EXIT_FAILURE);
}

/* Parameters travel beside the statement, as text: nothing is quoted, and nothing can be injected. */
static PGresult *ask(const char *statement, int count, const char *const *parameters)
{
    return PQexecParams(connection, statement, count, NULL, parameters, NULL, NULL, 0);
}

static PGresult *query(const char *statement, int count, const char *const *parameters)
{
    PGresult *result = ask(statement, count, parameters);
    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        fail(result);
    return result;
}

/* Apply, the short way: sona.recall searches the table and says how it answered. It writes nothing. */
static PGresult *recall(const char *space, const char *question)
{
    PGresult *found = query("SELECT item_id, rank, score, trajectory_id, arm, version, strategy, propensity"
                            " FROM sona.recall($1, $2, 3) ORDER BY rank",
                            2, (const char *[]){space, question});
    for (int row = 0; row < PQntuples(found); row++)
        printf("recall %s %s %s\n", PQgetvalue(found, row, 1), PQgetvalue(found, row, 0), PQgetvalue(found, row, 2));
    return found;
}

/* Apply, in a statement of one's own. Called in a subquery, sona.adapt runs once, and an index on embedding serves. */
static void search(const char *space, const char *table, const char *question)
{
    char statement[512];
    char *name = PQescapeIdentifier(connection, table, strlen(table));
    if (!name)
        fail(NULL);
    snprintf(statement, sizeof statement,
             "SELECT id FROM %s ORDER BY embedding <=> (SELECT sona.adapt($1, $2)) LIMIT %d", name, SHOWN);
    PQfreemem(name);
    PGresult *found = query(statement, 2, (const char *[]){space, question});
    for (int row = 0; row < PQntuples(found); row++)
        printf("search %d %s\n", row + 1, PQgetvalue(found, row, 0));
    PQclear(found);
}

/* Record: what was asked, what was shown and what it was worth: the first item helped, the second did not, and nobody
 * judged the third. How recall answered goes back with it. The same trajectory id again is nothing. */
static void record(const char *space, const char *question, const PGresult *found)
{
    const char *parameters[] = {space,
                                question,
                                PQgetvalue(found, 0, 0),
                                PQgetvalue(found, 1, 0),
                                PQgetvalue(found, 2, 0),
                                PQgetvalue(found, 0, 3),
                                PQgetvalue(found, 0, 4),
                                PQgetvalue(found, 0, 5),
                                PQgetvalue(found, 0, 6),
                                PQgetvalue(found, 0, 7)};
    PGresult *recorded = query("SELECT sona.record($1, $2, item_ids => ARRAY[$3, $4, $5], rewards => '{1,0,NULL}',"
                               " trajectory_id => $6, arm => $7, version => $8, strategy => $9, propensity => $10)",
                               10, parameters);
    printf("recorded %s\n", PQgetvalue(recorded, 0, 0));
    PQclear(recorded);
}

/* Score: an outcome that came later, for an item. The id of the score makes it safe to send twice: 't', then 'f'. */
static void score(const char *trajectory, const char *item)
{
    PGresult *scored = query("SELECT sona.score($1::uuid, 1, item_id => $2, score_id => 'of ' || $1::uuid::text)", 2,
                             (const char *[]){trajectory, item});
    printf("score %s\n", PQgetvalue(scored, 0, 0));
    PQclear(scored);
}

/* Refused input has an SQLSTATE of its own: SN001 unknown space, SN002 wrong dimension, SN003 invalid, SN004 setting. */
static void show_refusal(const char *space)
{
    PGresult *refused = ask("SELECT sona.record($1, '[1,2]')", 1, (const char *[]){space});
    if (PQresultStatus(refused) != PGRES_FATAL_ERROR)
        exit(EXIT_FAILURE);
    printf("refused %s %s\n", PQresultErrorField(refused, PG_DIAG_SQLSTATE),
           PQresultErrorField(refused, PG_DIAG_MESSAGE_PRIMARY));
    PQclear(refused);
}

int main(int count, char **arguments)
{
    if (count != 5) {
        fprintf(stderr, "usage: %s CONNINFO SPACE TABLE QUERY\n", arguments[0]);
        return EXIT_FAILURE;
    }
    const char *space = arguments[2], *table = arguments[3], *question = arguments[4];
    connection = PQconnectdb(arguments[1]);
    if (PQstatus(connection) != CONNECTION_OK)
        fail(NULL);

    search(space, table, question);
    PGresult *found = recall(space, question);
    if (PQntuples(found) == SHOWN) {
        record(space, question, found);
        score(PQgetvalue(found, 0, 3), PQgetvalue(found, 2, 0));
        score(PQgetvalue(found, 0, 3), PQgetvalue(found, 2, 0));
    }
    show_refusal(space);

    PQclear(found);
    PQfinish(connection);
    return EXIT_SUCCESS;
}
