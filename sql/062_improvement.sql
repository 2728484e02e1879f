-- Whether a space gets better, and keeps what it has learned: one row a day.

CREATE OR REPLACE VIEW sona.improvement WITH (security_invoker = true) AS
SELECT s.name AS space, d.day, d.answers, l.control_answers, d.quality, l.lift, l.lift_so_far, l.lower, l.upper,
       d.judged, l.harmed_share, d.gain, k.asked_again, k.gain_before, k.gain_before_error, k.gain_again,
       r.retention, n.novel_connections, o.overall
FROM sona.space s
CROSS JOIN LATERAL (
    SELECT (a.answered_at AT TIME ZONE 'UTC')::date AS day, count(*) AS answers, avg(a.value) AS quality,
           count(a.gain) AS judged, avg(a.gain) AS gain
    FROM sona.answer_outcome a WHERE a.space_id = s.space_id GROUP BY 1) d
JOIN sona.lift l ON l.space = s.name AND l.day = d.day
LEFT JOIN LATERAL (
    WITH asked AS (
        -- The same question in other words has the same best answer: to find it, no vectors need be compared.
        SELECT (a.answered_at AT TIME ZONE 'UTC')::date AS day, q.helped[1] AS item, count(*) AS n, sum(a.gain) AS gain
        FROM sona.answer_outcome a JOIN sona.remembered_query q USING (space_id, trajectory_id)
        WHERE a.space_id = s.space_id AND a.gain IS NOT NULL AND q.helped <> '{}' GROUP BY 1, 2),
    compared AS (
        SELECT x.day, x.n, x.gain, sum(x.gain) OVER week / sum(x.n) OVER week AS before FROM asked x
        WINDOW week AS (PARTITION BY x.item ORDER BY x.day RANGE BETWEEN '7 days' PRECEDING AND '1 day' PRECEDING))
    SELECT y.day, y.asked_again, y.gain_before, y.gain_again,
           sqrt(greatest(y.squares - y.gain_before ^ 2, 0) / y.asked_again) AS gain_before_error
    FROM (SELECT c.day, sum(c.n)::bigint AS asked_again, sum(c.n * c.before) / sum(c.n) AS gain_before,
                 sum(c.gain) / sum(c.n) AS gain_again, sum(c.n * c.before ^ 2) / sum(c.n) AS squares
          FROM compared c WHERE c.before IS NOT NULL GROUP BY 1) y) k ON k.day = d.day
CROSS JOIN LATERAL (
    -- Without a dream nothing could have been connected.
    SELECT CASE WHEN EXISTS (SELECT FROM sona.memory_state m WHERE m.space_id = s.space_id AND m.evidence IS NOT NULL)
                THEN (SELECT count(*) FROM sona.memory_edge e WHERE e.space_id = s.space_id AND e.kind = 'creative'
                      AND (e.created_at AT TIME ZONE 'UTC')::date = d.day) END AS novel_connections) n
CROSS JOIN LATERAL (
    -- A share of what may have been chance would be nothing but chance.
    SELECT CASE WHEN k.asked_again >= 30 AND k.gain_before >= greatest(0.005, 2 * k.gain_before_error)
                THEN least(greatest(k.gain_again / k.gain_before, 0), 1) END AS retention) r
CROSS JOIN LATERAL (
    SELECT sum(p.weight * p.score) / sum(p.weight) AS overall
    FROM (VALUES (2, d.quality), (1, (1 + l.lift_so_far) / 2), (1, (1 + d.gain) / 2),
                 (1, 1 - l.harmed_share::double precision), (1, r.retention)) q (weight, known),
         -- By inverse propensity, a lift of few answers may lie beyond 1.
         LATERAL (SELECT q.weight, least(greatest(q.known, 0), 1) AS score) p
    WHERE q.known IS NOT NULL) o;
COMMENT ON VIEW sona.improvement IS
    'Whether a space gets better, by day (UTC). quality: what answers were worth, 0 to 1. lift, lower, upper, '
    'harmed_share: as in sona.lift. gain: nDCG@10 of what answered above the frozen embedding, over the judged answers. '
    'asked_again: answers to questions whose best item helped in the 7 days before, too; gain_before: what those had '
    'gained then, with its standard error, gain_again: what they gain now; retention: the share of it that is kept, 0 to '
    '1, NULL where fewer than 30 were asked again, or what there was to keep is below 0.005 or two standard errors. '
    'novel_connections: edges that dreams made on the day and that stand, NULL before the first cycle of the deep loop. '
    'overall: mean of what is known of quality '
    '(which counts twice), (1 + lift_so_far) / 2, (1 + gain) / 2, 1 - harmed_share and retention.';
