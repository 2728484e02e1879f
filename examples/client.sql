-- sona from psql:  psql -v ON_ERROR_STOP=1 -f examples/client.sql "$SONA_DATABASE_URL"
-- Run it, let `sona worker instant --once` learn, and run it again: the table stays as it is, and is searched better.

\if :{?space} \else \set space example \endif

SELECT NOT EXISTS (SELECT FROM sona.status WHERE space = :'space') AS fresh \gset
\if :fresh
    -- The application's own table, and a space for its embedding model. Nothing is copied but a sample to learn with.
    CREATE TABLE :"space" (id integer PRIMARY KEY, title text NOT NULL, embedding vector(3) NOT NULL);
    INSERT INTO :"space" VALUES
        (1, 'Reset a password', '[0.9,0.1,0.0]'), (2, 'Change the e-mail address', '[0.7,0.6,0.1]'),
        (3, 'Refunds', '[0.1,0.9,0.2]'), (4, 'Delivery times', '[0.0,0.3,0.9]');
    SELECT sona.create_space(:'space', 3, embedder => 'three-numbers');
    SELECT sona.set_items(:'space', quote_ident(:'space')::regclass, 'id', 'embedding') AS sampled;
\endif

\set question '[0.8,0.5,0.0]'

-- Apply: in a statement of your own, where your index serves it, …
SELECT id, title FROM :"space" ORDER BY embedding <=> (SELECT sona.adapt(:'space', :'question')) LIMIT 3;

-- … or by sona.recall, which says how it answered, so that the outcome can be put down to it.
CREATE TEMPORARY TABLE answer AS SELECT * FROM sona.recall(:'space', :'question', 3);
SELECT rank, item_id, score, strategy, version FROM answer ORDER BY rank;

-- Record: what was shown, in order, and what is known of it. Here nobody has judged anything yet.
SELECT sona.record(:'space', :'question', array_agg(a.item_id ORDER BY a.rank), trajectory_id => a.trajectory_id,
                   arm => a.arm, version => a.version, strategy => a.strategy, propensity => a.propensity) AS trajectory
FROM answer a GROUP BY a.trajectory_id, a.arm, a.version, a.strategy, a.propensity \gset

-- Score, later: article 2 solved it. A score id may come twice and counts once.
SELECT sona.score(:'trajectory', 1, item_id => '2', score_id => 'ticket of ' || :'trajectory') AS counted;
SELECT sona.score(:'trajectory', 1, item_id => '2', score_id => 'ticket of ' || :'trajectory') AS counted_again;

-- How long it is kept, and where things stand.
SELECT sona.set_retention(:'space', trajectories => '1 year', steps => '90 days');
SELECT space, trajectories, pending, events_learned, trajectory_retention FROM sona.status WHERE space = :'space';
