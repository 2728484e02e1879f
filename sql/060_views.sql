-- What was learned, for people and dashboards. Views use the rights and the policies of the caller.

CREATE OR REPLACE VIEW sona.status WITH (security_invoker = true) AS
SELECT s.name AS space, s.dim, s.embedder, l.events AS events_learned, l.version, l.epoch, l.revision,
       (SELECT count(*) FROM sona.trajectory t WHERE t.space_id = s.space_id) AS trajectories,
       (SELECT count(*) FROM sona.memory_edge e WHERE e.space_id = s.space_id) AS edges,
       i.items::text AS items_table, l.updated_at AS last_learned_at,
       (SELECT count(*) FROM sona.pending_trajectory p WHERE p.space_id = s.space_id) AS pending,
       s.trajectory_retention::text AS trajectory_retention, s.step_retention::text AS step_retention,
       s.strategy, CASE s.strategy WHEN 'learned' THEN g.in_force ELSE s.strategy END AS in_force,
       l.ordinal - g.ordinal AS unweighed
FROM sona.space s
JOIN sona.learner l USING (space_id)
JOIN sona.strategist g USING (space_id)
LEFT JOIN sona.item_source i USING (space_id);
COMMENT ON VIEW sona.status IS 'One row for every space: what was recorded and learned.';

CREATE OR REPLACE VIEW sona.cycles WITH (security_invoker = true) AS
SELECT s.name AS space, c.loop, c.cycle_id, c.epoch, c.version, c.events, c.learned, c.replayed, c.worker,
       c.started_at, c.finished_at
FROM sona.learning_cycle c
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.cycles IS 'The ledger: one row for every learning transaction.';

CREATE OR REPLACE VIEW sona.ledger WITH (security_invoker = true) AS
SELECT s.name AS space, e.loop, e.ordinal, e.trajectory_id, e.revision, e.learned, e.cycle_id
FROM sona.learning_event e
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.ledger IS 'The ledger: one row for every outcome event, exactly once for each loop and revision.';

CREATE OR REPLACE VIEW sona.errors WITH (security_invoker = true) AS
SELECT s.name AS space, e.created_at, e.source, e.worker, e.message
FROM sona.error_log e
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.errors IS 'What went wrong, newest entries have the highest time.';

CREATE OR REPLACE VIEW sona.strategies WITH (security_invoker = true) AS
SELECT s.name AS space, e.strategy, e.strategy = CASE s.strategy WHEN 'learned' THEN g.in_force ELSE s.strategy END AS in_force,
       e.events, e.gain, e.recent_gain
FROM sona.strategy_evidence e
JOIN sona.space s USING (space_id)
JOIN sona.strategist g USING (space_id);
COMMENT ON VIEW sona.strategies IS
    'What every strategy would have brought, in nDCG@10 above frozen, whether it answered or not.';

CREATE OR REPLACE VIEW sona.regions WITH (security_invoker = true) AS
SELECT s.name AS space, r.region, r.events, r.gain,
       CASE r.verdict WHEN 1 THEN 'better' WHEN -1 THEN 'worse' ELSE 'follows the space' END AS verdict
FROM sona.strategy_region r
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.regions IS 'Parts of the query space with evidence of their own, and what it says of the fusion.';

CREATE OR REPLACE VIEW sona.turns WITH (security_invoker = true) AS
SELECT s.name AS space, t.created_at, t.ordinal, t.trajectory_id, t.region, t.before, t.after, t.reason
FROM sona.strategy_turn t
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.turns IS 'When another strategy came into force, where, and why.';
