-- What was learned, for people and dashboards. Views use the rights and the policies of the caller.

CREATE OR REPLACE VIEW sona.status WITH (security_invoker = true) AS
SELECT s.name AS space, s.dim, s.embedder, l.events AS events_learned, l.version, l.epoch, l.revision,
       (SELECT count(*) FROM sona.trajectory t WHERE t.space_id = s.space_id) AS trajectories,
       (SELECT count(*) FROM sona.memory_edge e WHERE e.space_id = s.space_id) AS edges,
       i.items::text AS items_table, l.updated_at AS last_learned_at,
       (SELECT count(*) FROM sona.pending_trajectory p WHERE p.space_id = s.space_id) AS pending,
       s.trajectory_retention::text AS trajectory_retention, s.step_retention::text AS step_retention,
       s.strategy,
       CASE s.strategy WHEN 'learned' THEN g.in_force WHEN 'shadow' THEN 'frozen' ELSE s.strategy END AS in_force,
       l.ordinal - g.ordinal AS unweighed, g.in_force AS proven,
       CASE WHEN s.control_share > 0 AND s.strategy <> 'shadow' THEN greatest(s.control_share, g.suspected_share)
            ELSE 0 END AS control_share,
       -- Without a cycle of the background loop nothing is withheld, and then the ledger need not be read.
       CASE WHEN b.space_id IS NULL THEN 0 ELSE (
            SELECT count(*) FROM sona.learning_event e WHERE e.space_id = s.space_id AND e.loop = 'instant'
            AND e.ordinal >= b.learned AND e.learned = 'withheld'
            -- It waits to judge, or it has judged and waits to be learned; of noise nothing is.
            AND (e.ordinal >= b.judged OR e.trajectory_id = ANY (b.reservoir))) END AS withheld
FROM sona.space s
JOIN sona.learner l USING (space_id)
JOIN sona.strategist g USING (space_id)
LEFT JOIN sona.base_state b USING (space_id)
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

CREATE OR REPLACE VIEW sona.runs WITH (security_invoker = true) AS
SELECT s.name AS space, r.run_id, r.loop, r.cause,
       -- Whoever claims a run holds the lock of its loop: without it, its worker is dead, and the next one goes on.
       CASE WHEN r.state = 'running' AND sona._loop_backend(r.space_id, r.loop) IS NULL
       THEN 'interrupted' ELSE r.state END AS state,
       r.requested_at, r.requested_by, r.started_at, r.claimed_at, r.finished_at, r.worker, r.attempts, r.phases, r.facts, r.reason
FROM sona.loop_run r
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.runs IS
    'Cycles of the loops: what is asked for, what is at work, and what became of the others.';

CREATE OR REPLACE VIEW sona.schedules WITH (security_invoker = true) AS
SELECT s.name AS space, x.loop, x.is_enabled, x.every_seconds, x.cron, x.time_zone, x.amount, x.windows, x.next_at,
       l.ordinal - x.consumed AS waiting, x.failures, x.retry_at, x.set_aside_at,
       (SELECT r.reason FROM sona.loop_run r
        WHERE r.space_id = x.space_id AND r.loop = x.loop AND r.state = 'failed' AND x.failures > 0
        ORDER BY r.run_id DESC LIMIT 1) AS reason
FROM sona.loop_schedule x
JOIN sona.space s USING (space_id)
JOIN sona.learner l USING (space_id);
COMMENT ON VIEW sona.schedules IS 'When the loops learn in a space, what waits for them, and why one does not.';

CREATE OR REPLACE VIEW sona.workers WITH (security_invoker = true) AS
-- By its lock, not by its name: that is cut to 63 bytes, and in two containers it may be the same.
SELECT w.name[1] AS loop, coalesce(r.worker, w.name[2]) AS worker, a.pid AS backend, a.backend_start AS connected_at,
       s.name AS space, r.run_id, r.claimed_at, r.phases
FROM pg_stat_activity a
CROSS JOIN LATERAL regexp_match(a.application_name, '^sona worker (\S+) (\S+)$') AS w (name)
LEFT JOIN sona.loop_run r ON r.state = 'running' AND r.loop = w.name[1] AND sona._loop_backend(r.space_id, r.loop) = a.pid
LEFT JOIN sona.space s USING (space_id)
WHERE a.datname = current_database() AND w.name IS NOT NULL;
COMMENT ON VIEW sona.workers IS
    'The workers that are connected, and what they are at. A process that is gone is not connected.';

CREATE OR REPLACE VIEW sona.errors WITH (security_invoker = true) AS
SELECT s.name AS space, e.created_at, e.source, e.worker, e.message
FROM sona.error_log e
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.errors IS 'What went wrong, newest entries have the highest time.';

CREATE OR REPLACE VIEW sona.patterns WITH (security_invoker = true) AS
SELECT s.name AS space, p.pattern_id, p.cluster_size, p.support, p.avg_quality, p.confidence, p.best_strategy,
       p.title, p.description, p.content, p.total_weight, p.decayed_at, p.created_at, p.updated_at, p.centroid,
       p.abstraction_level, p.children, coalesce(a.access_count, 0) AS access_count, a.last_accessed
FROM sona.pattern p
JOIN sona.space s USING (space_id)
LEFT JOIN sona.pattern_access a USING (space_id, pattern_id);
COMMENT ON VIEW sona.patterns IS
    'Kinds of queries: how many there were, what the answers to them were worth, how sure that is, and how often engines '
    'have found them.';

CREATE OR REPLACE VIEW sona.verdicts WITH (security_invoker = true) AS
SELECT s.name AS space, v.pattern_id, v.parameter, e.value, e.support, e.quality, e.improvement, e.p, e.p_adjusted, e.e,
       e.consistency, e.decision, e."precision" AS mean_precision, e.recall AS mean_recall
FROM sona.verdict v
JOIN sona.space s USING (space_id)
CROSS JOIN LATERAL jsonb_to_recordset(v.evidence) AS e (
    value jsonb, support bigint, quality double precision, improvement double precision, p double precision,
    p_adjusted double precision, e double precision, consistency double precision, decision integer,
    "precision" double precision, recall double precision);
COMMENT ON VIEW sona.verdicts IS
    'Which values of which parameters worked, pattern by pattern. decision: 1 is proven to be better than the others that '
    'were used there, -1 to be worse, 0 nothing is proven.';

CREATE OR REPLACE VIEW sona.pattern_events WITH (security_invoker = true) AS
SELECT s.name AS space, h.run_id, h.created_at, h.pattern_id, h.event, h.into_id, h.cluster_size, h.support, h.avg_quality
FROM sona.pattern_history h
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.pattern_events IS 'What became of patterns, cycle by cycle.';

CREATE OR REPLACE VIEW sona.strategies WITH (security_invoker = true) AS
SELECT s.name AS space, e.strategy, e.strategy = CASE s.strategy WHEN 'learned' THEN g.in_force WHEN 'shadow' THEN 'frozen' ELSE s.strategy END AS in_force,
       e.events, e.gain, e.recent_gain
FROM sona.strategy_evidence e
JOIN sona.space s USING (space_id)
JOIN sona.strategist g USING (space_id);
COMMENT ON VIEW sona.strategies IS
    'What every strategy would have brought, in nDCG@10 above frozen, whether it answered or not.';

CREATE OR REPLACE VIEW sona.regions WITH (security_invoker = true) AS
SELECT s.name AS space, r.region, r.events, r.gain,
       CASE r.verdict WHEN 1 THEN 'better' WHEN -1 THEN 'worse' ELSE 'follows the space' END AS verdict, r.pattern_id
FROM sona.strategy_region r
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.regions IS 'Parts of the query space with evidence of their own, and what it says of the fusion.';

CREATE OR REPLACE VIEW sona.turns WITH (security_invoker = true) AS
SELECT s.name AS space, t.created_at, t.ordinal, t.trajectory_id, t.region, t.before, t.after, t.reason
FROM sona.strategy_turn t
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.turns IS 'When another strategy came into force, or was proven in a region, where, and why.';

CREATE OR REPLACE VIEW sona.lift WITH (security_invoker = true) AS
WITH days AS (
    SELECT o.space_id, date_trunc('day', o.answered_at AT TIME ZONE 'UTC')::date AS day,
           count(*) FILTER (WHERE o.arm = 'learned' AND o.strategy <> 'unknown') AS learned_answers,
           count(*) FILTER (WHERE o.arm = 'control') AS control_answers,
           avg(o.value) FILTER (WHERE o.arm = 'learned' AND o.strategy <> 'unknown') AS learned_value,
           avg(o.value) FILTER (WHERE o.arm = 'control') AS control_value,
           avg(o.contrast) AS lift, count(o.contrast) AS n, sum(o.contrast) AS total,
           sum(o.contrast ^ 2) AS squares,
           max(1 / o.propensity::double precision) FILTER (WHERE o.contrast IS NOT NULL) AS weight, avg(o.gain) AS gain,
           avg((o.gain < -1e-9)::integer) AS harmed_share, count(*) FILTER (WHERE o.gain < -1e-9) AS harmed
    FROM sona.answer_outcome o GROUP BY 1, 2),
running AS (
    SELECT d.*, sum(d.n) OVER w AS all_n, sum(d.total) OVER w / nullif(sum(d.n) OVER w, 0) AS all_lift,
           sum(d.squares) OVER w AS all_squares, max(d.weight) OVER w AS all_weight
    FROM days d WINDOW w AS (PARTITION BY d.space_id ORDER BY d.day)),
spread AS (
    SELECT r.*, sqrt(greatest(r.all_squares / nullif(r.all_n, 0) - r.all_lift ^ 2, 0)
                     -- Tightest near 1,000 answers.
                     * 2 * (r.all_n * 0.01 + 1) / nullif(r.all_n ^ 2 * 0.01, 0)
                     * ln(sqrt(r.all_n * 0.01 + 1) / 0.05))
                -- And what the estimated variance does not know of yet: a rare value of the rare arm.
                + r.all_weight * ln(1 / 0.05) / nullif(r.all_n, 0) AS margin
    FROM running r)
SELECT s.name AS space, x.day, x.learned_answers, x.control_answers, x.learned_value, x.control_value, x.lift,
       x.all_lift AS lift_so_far, x.all_lift - x.margin AS lower, x.all_lift + x.margin AS upper,
       x.harmed, x.harmed_share, x.gain
FROM spread x
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.lift IS
    'What answers are worth above those of the control arm, by day (UTC): the arms, the lift by inverse propensity, and so '
    'far, with a 95 % confidence sequence, which may be looked at every day (Waudby-Smith et al. 2021, asymptotic). '
    'The lift is by the first outcome of an answer, the means of the arms by the last. Harmed answers and gain are by what '
    'was judged, whatever the arms say.';

CREATE OR REPLACE VIEW sona.harmed WITH (security_invoker = true) AS
SELECT s.name AS space, o.trajectory_id, o.answered_at, o.strategy, o.version, o.value, o.gain,
       (SELECT t.reason FROM sona.strategy_turn t
        WHERE t.space_id = o.space_id AND t.ordinal < o.ordinal AND t.after = o.strategy
        ORDER BY t.turn_id DESC LIMIT 1) AS in_force_because
FROM sona.answer_outcome o
JOIN sona.space s USING (space_id)
WHERE o.gain < -1e-9;
COMMENT ON VIEW sona.harmed IS
    'Answers to which the frozen embedding would have been better, on the items that were judged, and why what answered '
    'was in force; sona.why(trajectory_id) says what moved them.';

CREATE OR REPLACE VIEW sona.forgetting WITH (security_invoker = true) AS
SELECT s.name AS space, r.run_id, r.finished_at, f.base AS decision, f.base_reason AS reason, f.base_version AS version,
       f.withheld, f.log_rank_gain, f.ndcg_gain, f.tasks_ended, f.tasks_held, f.ewc_lambda
FROM sona.loop_run r
JOIN sona.space s USING (space_id),
LATERAL jsonb_to_record(r.facts) AS f (
    base text, base_reason text, base_version bigint, withheld bigint, log_rank_gain double precision,
    ndcg_gain double precision, tasks_ended bigint, tasks_held bigint, ewc_lambda double precision)
WHERE f.base IS NOT NULL;
COMMENT ON VIEW sona.forgetting IS
    'What each cycle of the background loop would have changed on events that nothing was learned from, against what '
    'answered: gains below zero are what it would have forgotten. Published or kept, and why; tasks that ended in it, and '
    'tasks that the base was held for, how strongly.';

CREATE OR REPLACE VIEW sona.tasks WITH (security_invoker = true) AS
SELECT s.name AS space, f.snapshot_id AS task, f.times_met, f.samples, f.quality, f.kind, f.lambda, f.layout,
       octet_length(f.fisher) + octet_length(f.anchor) AS bytes, f.created_at, f.updated_at, f.signature
FROM sona.fisher_snapshot f
JOIN sona.space s USING (space_id);
COMMENT ON VIEW sona.tasks IS
    'Tasks that a space has learned: stretches of traffic of one kind, and the Fisher snapshots that were kept of them. '
    'The task nearest to a query: ORDER BY signature <=> query.';
