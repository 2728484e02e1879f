-- What the columns of the views mean; those of the tables are described by the migrations.

COMMENT ON COLUMN sona.status.space IS 'name of the space';
COMMENT ON COLUMN sona.status.dim IS 'components of every vector of the space';
COMMENT ON COLUMN sona.status.embedder IS 'fingerprint of the embedding model; NULL until it is declared';
COMMENT ON COLUMN sona.status.events_learned IS 'outcome events learned, those too that were withheld first';
COMMENT ON COLUMN sona.status.version IS 'version that was published last, or deployed since';
COMMENT ON COLUMN sona.status.epoch IS 'grows with every deploy';
COMMENT ON COLUMN sona.status.revision IS 'grows with every flush';
COMMENT ON COLUMN sona.status.trajectories IS 'trajectories recorded and not deleted';
COMMENT ON COLUMN sona.status.edges IS 'edges of its memory graph';
COMMENT ON COLUMN sona.status.items_table IS 'table of the application that recall searches; NULL until it is named';
COMMENT ON COLUMN sona.status.last_learned_at IS 'when it was last flushed';
COMMENT ON COLUMN sona.status.pending IS
    'what SQL clients recorded and scored, and the instant worker has yet to learn';
COMMENT ON COLUMN sona.status.trajectory_retention IS 'trajectories older than this are deleted; NULL keeps them';
COMMENT ON COLUMN sona.status.step_retention IS 'steps of older trajectories are deleted; NULL keeps them';
COMMENT ON COLUMN sona.status.strategy IS 'what it is set to: learned is whatever is proven';
COMMENT ON COLUMN sona.status.in_force IS 'strategy that answers';
COMMENT ON COLUMN sona.status.unweighed IS
    'ledger entries that are learned, and that the strategies are yet to be weighed by';
COMMENT ON COLUMN sona.status.proven IS 'strategy that is proven to be best, whether it answers or not';
COMMENT ON COLUMN sona.status.control_share IS 'share of answers that the frozen embedding gives, to compare with';
COMMENT ON COLUMN sona.status.withheld IS 'outcome events kept from learning until they have judged what was learned';

COMMENT ON COLUMN sona.cycles.space IS 'name of the space';
COMMENT ON COLUMN sona.cycles.loop IS 'instant, background or deep';
COMMENT ON COLUMN sona.cycles.cycle_id IS 'the revision that it made';
COMMENT ON COLUMN sona.cycles.epoch IS 'the learner''s epoch';
COMMENT ON COLUMN sona.cycles.version IS 'version in force when it ended';
COMMENT ON COLUMN sona.cycles.events IS 'ledger entries';
COMMENT ON COLUMN sona.cycles.learned IS 'entries that changed a weight';
COMMENT ON COLUMN sona.cycles.replayed IS 'whether the events were rebased onto another''s state';
COMMENT ON COLUMN sona.cycles.worker IS 'host and process';
COMMENT ON COLUMN sona.cycles.started_at IS 'when its work began';
COMMENT ON COLUMN sona.cycles.finished_at IS 'when it was committed';

COMMENT ON COLUMN sona.ledger.space IS 'name of the space';
COMMENT ON COLUMN sona.ledger.loop IS 'instant, background or deep';
COMMENT ON COLUMN sona.ledger.ordinal IS 'order in which events were learned';
COMMENT ON COLUMN sona.ledger.trajectory_id IS 'trajectory that was learned from';
COMMENT ON COLUMN sona.ledger.revision IS 'revision of its outcomes: a later or corrected score makes a new one';
COMMENT ON COLUMN sona.ledger.learned IS
    'what became of it then: adapter, withheld, no outcome, …; what was withheld a later cycle learns, see sona.runs';
COMMENT ON COLUMN sona.ledger.cycle_id IS 'transaction that learned it, in sona.cycles';

COMMENT ON COLUMN sona.runs.space IS 'name of the space';
COMMENT ON COLUMN sona.runs.run_id IS 'order of the runs';
COMMENT ON COLUMN sona.runs.loop IS 'background, deep or another that a worker runs';
COMMENT ON COLUMN sona.runs.cause IS 'time, amount or manual';
COMMENT ON COLUMN sona.runs.state IS
    'requested, running, interrupted (its worker is gone, and the next one goes on), done, skipped or failed';
COMMENT ON COLUMN sona.runs.requested_at IS 'when it was asked for, or began';
COMMENT ON COLUMN sona.runs.requested_by IS 'login that asked for it; NULL if none did';
COMMENT ON COLUMN sona.runs.started_at IS 'when it was claimed first';
COMMENT ON COLUMN sona.runs.claimed_at IS 'when it was claimed last';
COMMENT ON COLUMN sona.runs.finished_at IS 'when it ended';
COMMENT ON COLUMN sona.runs.worker IS 'host and process; NULL while nobody is at it';
COMMENT ON COLUMN sona.runs.attempts IS 'claims since its last phase was committed';
COMMENT ON COLUMN sona.runs.phases IS
    'phases that are committed, in order: name, seconds to read, to compute and to write';
COMMENT ON COLUMN sona.runs.facts IS 'what the phases say of what they did: the result';
COMMENT ON COLUMN sona.runs.reason IS 'why it was skipped or failed';

COMMENT ON COLUMN sona.schedules.space IS 'name of the space';
COMMENT ON COLUMN sona.schedules.loop IS 'background, deep or another that a worker runs';
COMMENT ON COLUMN sona.schedules.is_enabled IS 'whether a cycle is due by itself';
COMMENT ON COLUMN sona.schedules.every_seconds IS 'time between two cycles; NULL if none is due by that';
COMMENT ON COLUMN sona.schedules.cron IS 'when a cycle is due, in five fields; NULL if none is due by that';
COMMENT ON COLUMN sona.schedules.time_zone IS 'of cron and windows';
COMMENT ON COLUMN sona.schedules.amount IS 'new ledger entries that make a cycle due; NULL if none do';
COMMENT ON COLUMN sona.schedules.windows IS
    'times of the day at which a cycle may begin, like 22:00-06:00; empty is any';
COMMENT ON COLUMN sona.schedules.next_at IS 'when a cycle is due by time; NULL until a worker has planned it';
COMMENT ON COLUMN sona.schedules.waiting IS 'ledger entries since those that the last cycle that was done had seen';
COMMENT ON COLUMN sona.schedules.failures IS 'cycles that failed since one was done';
COMMENT ON COLUMN sona.schedules.retry_at IS 'no cycle is due by itself before; NULL if none failed';
COMMENT ON COLUMN sona.schedules.set_aside_at IS
    'when too many had failed: none is due by itself; NULL if it was not set aside';
COMMENT ON COLUMN sona.schedules.reason IS 'why the last of those failed; NULL if none did';

COMMENT ON COLUMN sona.workers.loop IS 'what it works at: instant, background or deep';
COMMENT ON COLUMN sona.workers.worker IS 'host and process';
COMMENT ON COLUMN sona.workers.backend IS 'process of the server that serves it, in pg_stat_activity';
COMMENT ON COLUMN sona.workers.connected_at IS 'when it connected';
COMMENT ON COLUMN sona.workers.space IS 'name of the space that it is at; NULL while it waits';
COMMENT ON COLUMN sona.workers.run_id IS 'cycle that it is at, in sona.runs; NULL while it waits';
COMMENT ON COLUMN sona.workers.claimed_at IS 'when it claimed that';
COMMENT ON COLUMN sona.workers.phases IS 'phases of that which are committed';

COMMENT ON COLUMN sona.errors.space IS 'name of the space';
COMMENT ON COLUMN sona.errors.created_at IS 'when it happened';
COMMENT ON COLUMN sona.errors.source IS 'loop or command that met it';
COMMENT ON COLUMN sona.errors.worker IS 'host and process';
COMMENT ON COLUMN sona.errors.message IS 'what was found, what was expected, the way out';

COMMENT ON COLUMN sona.patterns.space IS 'name of the space';
COMMENT ON COLUMN sona.patterns.pattern_id IS 'for life';
COMMENT ON COLUMN sona.patterns.cluster_size IS 'trajectories of its cluster when it was last fed';
COMMENT ON COLUMN sona.patterns.support IS 'trajectories with an outcome that ever fed it';
COMMENT ON COLUMN sona.patterns.avg_quality IS 'what the answers of its cluster were worth, 0 to 1';
COMMENT ON COLUMN sona.patterns.confidence IS '0 to 1, how sure the average quality is';
COMMENT ON COLUMN sona.patterns.best_strategy IS 'strategy whose answers were best; NULL where none was recorded';
COMMENT ON COLUMN sona.patterns.title IS 'as somebody has called it; NULL if nobody did';
COMMENT ON COLUMN sona.patterns.description IS 'what somebody has said of it';
COMMENT ON COLUMN sona.patterns.content IS 'what somebody has put down for such queries';
COMMENT ON COLUMN sona.patterns.total_weight IS
    'trajectories that ever fed it, each counted once, weighted down as they age';
COMMENT ON COLUMN sona.patterns.decayed_at IS 'up to when total_weight is weighted down';
COMMENT ON COLUMN sona.patterns.created_at IS 'when a cycle first found it';
COMMENT ON COLUMN sona.patterns.updated_at IS 'when it was last fed';
COMMENT ON COLUMN sona.patterns.centroid IS 'its centre, of unit length';
COMMENT ON COLUMN sona.patterns.abstraction_level IS
    '0 for a cluster of trajectories, 1 for a pattern of patterns, and so on';
COMMENT ON COLUMN sona.patterns.children IS 'patterns that it is made of';
COMMENT ON COLUMN sona.patterns.access_count IS 'how often engines have found it';
COMMENT ON COLUMN sona.patterns.last_accessed IS 'when that was last counted; NULL before the first time';

COMMENT ON COLUMN sona.verdicts.space IS 'name of the space';
COMMENT ON COLUMN sona.verdicts.pattern_id IS 'pattern in which it was used';
COMMENT ON COLUMN sona.verdicts.parameter IS 'as the application calls it; strategy: what answered';
COMMENT ON COLUMN sona.verdicts.value IS 'the value that is judged';
COMMENT ON COLUMN sona.verdicts.support IS 'outcomes with that value';
COMMENT ON COLUMN sona.verdicts.quality IS 'what they were worth in the mean, 0 to 1';
COMMENT ON COLUMN sona.verdicts.improvement IS 'by how much that is above the others that were used there';
COMMENT ON COLUMN sona.verdicts.p IS 'probability of such a difference by chance alone';
COMMENT ON COLUMN sona.verdicts.p_adjusted IS 'the same, adjusted for all values that were compared';
COMMENT ON COLUMN sona.verdicts.e IS 'evidence, which may be looked at at any time: 20 proves it';
COMMENT ON COLUMN sona.verdicts.consistency IS
    'share of pairs, of one outcome of this value and one of another, that it won';
COMMENT ON COLUMN sona.verdicts.decision IS
    '1: proven to be better than the others that were used there, -1: worse, 0: nothing is proven';
COMMENT ON COLUMN sona.verdicts.mean_precision IS 'mean of the precision that was fed back; NULL where none was';
COMMENT ON COLUMN sona.verdicts.mean_recall IS 'mean of the recall that was fed back; NULL where none was';

COMMENT ON COLUMN sona.pattern_events.space IS 'name of the space';
COMMENT ON COLUMN sona.pattern_events.run_id IS 'the cycle, in sona.runs';
COMMENT ON COLUMN sona.pattern_events.created_at IS 'when it was committed';
COMMENT ON COLUMN sona.pattern_events.pattern_id IS 'pattern';
COMMENT ON COLUMN sona.pattern_events.event IS 'created, changed, merged or pruned';
COMMENT ON COLUMN sona.pattern_events.into_id IS 'pattern that it became part of; NULL if it was not merged';
COMMENT ON COLUMN sona.pattern_events.cluster_size IS 'as in sona.patterns, after it; of one that went, before';
COMMENT ON COLUMN sona.pattern_events.support IS 'likewise';
COMMENT ON COLUMN sona.pattern_events.avg_quality IS 'likewise';

COMMENT ON COLUMN sona.strategies.space IS 'name of the space';
COMMENT ON COLUMN sona.strategies.strategy IS 'strategy';
COMMENT ON COLUMN sona.strategies.in_force IS 'whether it answers';
COMMENT ON COLUMN sona.strategies.events IS 'events that it was scored on';
COMMENT ON COLUMN sona.strategies.gain IS 'mean nDCG@10 above frozen, before an event was learned from';
COMMENT ON COLUMN sona.strategies.recent_gain IS 'the same, an event counting 1 % less than the next';

COMMENT ON COLUMN sona.regions.space IS 'name of the space';
COMMENT ON COLUMN sona.regions.region IS 'number of the region';
COMMENT ON COLUMN sona.regions.events IS 'events that fell into it';
COMMENT ON COLUMN sona.regions.gain IS 'the fusion''s mean gain there, shrunk to that of the space';
COMMENT ON COLUMN sona.regions.verdict IS 'better or worse: the fusion is proven to be so there; or follows the space';
COMMENT ON COLUMN sona.regions.pattern_id IS 'pattern that it is; NULL while it is none';

COMMENT ON COLUMN sona.turns.space IS 'name of the space';
COMMENT ON COLUMN sona.turns.created_at IS 'when it was found';
COMMENT ON COLUMN sona.turns.ordinal IS 'ledger entry by which it was found';
COMMENT ON COLUMN sona.turns.trajectory_id IS 'trajectory of that entry';
COMMENT ON COLUMN sona.turns.region IS 'where; NULL is the whole space';
COMMENT ON COLUMN sona.turns.before IS 'strategy that was in force there';
COMMENT ON COLUMN sona.turns.after IS 'strategy that is in force there since; the same where what is proven of a region changes nothing';
COMMENT ON COLUMN sona.turns.reason IS 'what was proven';

COMMENT ON COLUMN sona.lift.space IS 'name of the space';
COMMENT ON COLUMN sona.lift.day IS 'day of the answers, UTC';
COMMENT ON COLUMN sona.lift.learned_answers IS 'answers of the learned arm';
COMMENT ON COLUMN sona.lift.control_answers IS 'answers of the control arm';
COMMENT ON COLUMN sona.lift.learned_value IS 'what those of the learned arm were worth, in the mean';
COMMENT ON COLUMN sona.lift.control_value IS 'what those of the control arm were worth, in the mean';
COMMENT ON COLUMN sona.lift.lift IS
    'of the day, by inverse propensity and first outcomes; NULL where there was no control arm';
COMMENT ON COLUMN sona.lift.lift_so_far IS 'the same over all days until then';
COMMENT ON COLUMN sona.lift.lower IS 'of the 95 % confidence sequence of lift_so_far; above 0 it is proven';
COMMENT ON COLUMN sona.lift.upper IS 'of the same';
COMMENT ON COLUMN sona.lift.harmed IS
    'answers to which the frozen embedding would have been better, on the items that were judged';
COMMENT ON COLUMN sona.lift.harmed_share IS 'their share of the judged answers';
COMMENT ON COLUMN sona.lift.gain IS 'nDCG@10 above the frozen embedding, in the mean of the judged answers';

COMMENT ON COLUMN sona.harmed.space IS 'name of the space';
COMMENT ON COLUMN sona.harmed.trajectory_id IS 'the answer';
COMMENT ON COLUMN sona.harmed.answered_at IS 'when it was recorded';
COMMENT ON COLUMN sona.harmed.strategy IS 'strategy that answered';
COMMENT ON COLUMN sona.harmed.version IS 'version that answered';
COMMENT ON COLUMN sona.harmed.value IS 'what it was worth, 0 to 1';
COMMENT ON COLUMN sona.harmed.gain IS 'nDCG@10 above the frozen embedding, below 0';
COMMENT ON COLUMN sona.harmed.in_force_because IS 'what was proven when that strategy came into force';

COMMENT ON COLUMN sona.forgetting.space IS 'name of the space';
COMMENT ON COLUMN sona.forgetting.run_id IS 'the cycle, in sona.runs';
COMMENT ON COLUMN sona.forgetting.finished_at IS 'when it ended';
COMMENT ON COLUMN sona.forgetting.decision IS 'published or kept, the candidate or what answered';
COMMENT ON COLUMN sona.forgetting.reason IS 'why';
COMMENT ON COLUMN sona.forgetting.version IS 'version of the base that was published; NULL if none was';
COMMENT ON COLUMN sona.forgetting.withheld IS 'outcome events, never learned from, that it was judged by';
COMMENT ON COLUMN sona.forgetting.log_rank_gain IS
    'gain of the candidate on them, by the logarithm of ranks; below 0 it would have forgotten';
COMMENT ON COLUMN sona.forgetting.ndcg_gain IS 'the same in nDCG@10';
COMMENT ON COLUMN sona.forgetting.tasks_ended IS 'tasks that ended in the cycle';
COMMENT ON COLUMN sona.forgetting.tasks_held IS 'tasks that the base was held for';
COMMENT ON COLUMN sona.forgetting.ewc_lambda IS 'how strongly';

COMMENT ON COLUMN sona.tasks.space IS 'name of the space';
COMMENT ON COLUMN sona.tasks.task IS '1 for the first of the space';
COMMENT ON COLUMN sona.tasks.times_met IS 'how often it has come';
COMMENT ON COLUMN sona.tasks.samples IS 'outcomes that the Fisher information is a mean of';
COMMENT ON COLUMN sona.tasks.quality IS 'what its answers were worth, 0 to 1';
COMMENT ON COLUMN sona.tasks.kind IS 'how the Fisher information was estimated';
COMMENT ON COLUMN sona.tasks.lambda IS 'strength of the penalty';
COMMENT ON COLUMN sona.tasks.layout IS 'which parameters they are, in which order';
COMMENT ON COLUMN sona.tasks.bytes IS 'size of the Fisher information and of the parameters';
COMMENT ON COLUMN sona.tasks.created_at IS 'when the task first ended';
COMMENT ON COLUMN sona.tasks.updated_at IS 'when it last ended';
COMMENT ON COLUMN sona.tasks.signature IS 'mean direction of the task''s queries, of unit length';

COMMENT ON COLUMN sona.improvement.space IS 'name of the space';
COMMENT ON COLUMN sona.improvement.day IS 'day of the answers, UTC';
COMMENT ON COLUMN sona.improvement.answers IS 'answers with an outcome';
COMMENT ON COLUMN sona.improvement.control_answers IS 'those of the control arm';
COMMENT ON COLUMN sona.improvement.quality IS 'what answers were worth, 0 to 1';
COMMENT ON COLUMN sona.improvement.lift IS 'as in sona.lift';
COMMENT ON COLUMN sona.improvement.lift_so_far IS 'likewise';
COMMENT ON COLUMN sona.improvement.lower IS 'likewise';
COMMENT ON COLUMN sona.improvement.upper IS 'likewise';
COMMENT ON COLUMN sona.improvement.judged IS 'answers whose items were judged';
COMMENT ON COLUMN sona.improvement.harmed_share IS
    'share of those to which the frozen embedding would have been better';
COMMENT ON COLUMN sona.improvement.gain IS
    'nDCG@10 of what answered above the frozen embedding, in the mean of the judged answers';
COMMENT ON COLUMN sona.improvement.asked_again IS
    'answers to questions whose best item helped in the 7 days before, too';
COMMENT ON COLUMN sona.improvement.gain_before IS 'what those had gained then';
COMMENT ON COLUMN sona.improvement.gain_before_error IS 'its standard error';
COMMENT ON COLUMN sona.improvement.gain_again IS 'what they gain now';
COMMENT ON COLUMN sona.improvement.retention IS
    'share of gain_before that is kept, 0 to 1; NULL where too few were asked again to say';
COMMENT ON COLUMN sona.improvement.novel_connections IS
    'edges that dreams made on the day and that stand; NULL before the first cycle of the deep loop';
COMMENT ON COLUMN sona.improvement.overall IS
    'mean of what is known of quality (twice), (1 + lift_so_far) / 2, (1 + gain) / 2, 1 - harmed_share and retention';

COMMENT ON COLUMN sona.memory.space IS 'name of the space';
COMMENT ON COLUMN sona.memory.node_id IS '1 for the first of the space';
COMMENT ON COLUMN sona.memory.kind IS 'item, pattern, concept, episode, procedure or dream';
COMMENT ON COLUMN sona.memory.key IS 'what it is called among those of its kind: the id of the item or of the pattern';
COMMENT ON COLUMN sona.memory.title IS 'as somebody has called it; NULL if nobody did';
COMMENT ON COLUMN sona.memory.level IS
    'of a concept: 1 if it is made of patterns, 2 if of concepts of level 1, and so on';
COMMENT ON COLUMN sona.memory.importance IS '0 to 1, its value at the last consolidation';
COMMENT ON COLUMN sona.memory.quality IS 'what answers were worth in which it took part, 0 to 1; NULL unknown';
COMMENT ON COLUMN sona.memory.access_count IS 'how often it took part in an outcome or was found';
COMMENT ON COLUMN sona.memory.last_access IS 'when it last did';
COMMENT ON COLUMN sona.memory.consolidation_count IS 'cycles in which it was strengthened';
COMMENT ON COLUMN sona.memory.created_at IS 'when it came into the graph';
COMMENT ON COLUMN sona.memory.embedding IS 'where it lies; NULL where nobody knows';

COMMENT ON COLUMN sona.edges.space IS 'name of the space';
COMMENT ON COLUMN sona.edges.kind IS
    'co_access, pattern, hierarchy, creative (a dream''s), analogy (with another space) or given (by hand)';
COMMENT ON COLUMN sona.edges.source_kind IS 'kind of the source, as in sona.memory';
COMMENT ON COLUMN sona.edges.source IS 'key of the source; of an item its id';
COMMENT ON COLUMN sona.edges.target_kind IS 'kind of the target';
COMMENT ON COLUMN sona.edges.target IS 'key of the target';
COMMENT ON COLUMN sona.edges.weight IS '0 to 1';
COMMENT ON COLUMN sona.edges.origin IS 'what has made it: trajectories, patterns, a dream, somebody by hand';
COMMENT ON COLUMN sona.edges.created_at IS 'when it was made';
COMMENT ON COLUMN sona.edges.updated_at IS 'when an outcome, a dream or somebody last changed the weight';
COMMENT ON COLUMN sona.edges.decayed_at IS 'up to when its weight has decayed';

COMMENT ON COLUMN sona.dreams.space IS 'name of the space';
COMMENT ON COLUMN sona.dreams.dream_id IS '1 for the first of the space';
COMMENT ON COLUMN sona.dreams.run_id IS 'cycle in which it was dreamt';
COMMENT ON COLUMN sona.dreams.created_at IS 'when it was dreamt';
COMMENT ON COLUMN sona.dreams.path IS 'nodes it came to, in order; gone is one that is no longer there';
COMMENT ON COLUMN sona.dreams.kinds IS 'how each was reached: start, edge, jump or restart';
COMMENT ON COLUMN sona.dreams.creative_jumps IS 'how many steps were jumps';
COMMENT ON COLUMN sona.dreams.novelty IS '0 to 1';
COMMENT ON COLUMN sona.dreams.coherence IS '0 to 1';
COMMENT ON COLUMN sona.dreams.utility IS '0 to 1';
COMMENT ON COLUMN sona.dreams.diversity IS '0 to 1';
COMMENT ON COLUMN sona.dreams.quality IS 'of novelty, coherence and utility, weighted';
COMMENT ON COLUMN sona.dreams.phi IS 'integration of its nodes, 0 to 1';
COMMENT ON COLUMN sona.dreams.phi_threshold IS 'from which it may be integrated';
COMMENT ON COLUMN sona.dreams.is_integrated IS 'whether it may have made edges';
COMMENT ON COLUMN sona.dreams.reason IS 'why it was, or was not';

COMMENT ON COLUMN sona.concepts.space IS 'name of the space';
COMMENT ON COLUMN sona.concepts.node_id IS 'as in sona.memory';
COMMENT ON COLUMN sona.concepts.concept IS 'what it is called';
COMMENT ON COLUMN sona.concepts.level IS '1 if it is made of patterns, 2 if of concepts of level 1, and so on';
COMMENT ON COLUMN sona.concepts.title IS 'as somebody has called it; NULL if nobody did';
COMMENT ON COLUMN sona.concepts.quality IS 'what answers were worth in which it took part, 0 to 1; NULL unknown';
COMMENT ON COLUMN sona.concepts.access_count IS 'how often it took part in an outcome or was found';
COMMENT ON COLUMN sona.concepts.children IS 'what it is made of';

COMMENT ON COLUMN sona.archive.space IS 'name of the space';
COMMENT ON COLUMN sona.archive.archive_id IS 'order of removal; sona.restore_memory takes it';
COMMENT ON COLUMN sona.archive.run_id IS 'cycle that removed it';
COMMENT ON COLUMN sona.archive.entity IS
    'node or edge; or node before, edge before: what stands, as it was before others were merged into it';
COMMENT ON COLUMN sona.archive.reason IS 'why it was removed';
COMMENT ON COLUMN sona.archive.archived_at IS 'when';
COMMENT ON COLUMN sona.archive.into_id IS 'node that it became part of; NULL where it went';
COMMENT ON COLUMN sona.archive.content IS 'the row, all of it; of a node with its state';

COMMENT ON COLUMN sona.integration.space IS 'name of the space';
COMMENT ON COLUMN sona.integration.consolidated_at IS 'up to when memory is consolidated';
COMMENT ON COLUMN sona.integration.phi IS
    'integration of those of the patterns that are most of one system, in nats; NULL before it was measured';
COMMENT ON COLUMN sona.integration.chance IS 'what chance gives';
COMMENT ON COLUMN sona.integration.patterns IS 'the patterns that it was measured over';
COMMENT ON COLUMN sona.integration.reason IS 'why it could not be measured; NULL where it was';
COMMENT ON COLUMN sona.integration.dreams_help IS
    'whether dreams predict edges that were held out; NULL before they are asked';
COMMENT ON COLUMN sona.integration.dream_auc IS 'how well they do, as an area under the ROC curve';
COMMENT ON COLUMN sona.integration.control_auc IS 'the same on graphs whose edges were rewired at random';
COMMENT ON COLUMN sona.integration.dream_reason IS 'what was found';
COMMENT ON COLUMN sona.integration.run_id IS 'cycle that was committed last; NULL before the first';
COMMENT ON COLUMN sona.integration.updated_at IS 'when it last changed';

COMMENT ON COLUMN sona.deployments.space IS 'name of the space';
COMMENT ON COLUMN sona.deployments.created_at IS 'when it was done';
COMMENT ON COLUMN sona.deployments.actor IS 'login that did it';
COMMENT ON COLUMN sona.deployments.action IS
    'publish, deploy, freeze, strategy, control, transfer, forget, embedder, load or import';
COMMENT ON COLUMN sona.deployments.before IS 'version or setting before';
COMMENT ON COLUMN sona.deployments.after IS 'version or setting since';
COMMENT ON COLUMN sona.deployments.reason IS 'why';
