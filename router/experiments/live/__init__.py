"""Experiments at run time: who is assigned, what is recorded, what acts by itself.

`runtime.Experiments` holds the rest together; `router.experiments.plugin` makes one, and the server asks it
through `router.ports.Experiments`.

The life of a request in an experiment (`router/server/pipeline.py`):

1. A router experiment chooses the router before routing: `Experiments.routers`, which a plugin's mode
   `routers` sets (`router/experiments/modes.py`), is awaited as `routers(request, router, counted)` and gives
   the decision together with its Assignment (None: no part).
   `Assigner.router(request, now)` says which arm of which router experiment a request has. A request in a
   router experiment takes part in no other.
2. After routing, `Assigner.assign(request, decision, now)` gives an `Assignment` (experiment, phase, arm,
   propensity, the unit's hash), or says why not. It reads an immutable `Snapshot` and never the store.
   `Snapshot.shadows` has the experiments whose arms answer unseen: they assign nobody. Nor do those on the
   holdout: `Assigner.holdouts` gives the side that the unit of a request is on, which changes no answer.
3. The pipeline leases the arm's version. An arm that cannot answer stays the arm of the request: control's
   version, then the version that routing chose, stand in, and the exposure says `degraded`.
4. Who wants to know how an answer goes is a `ports.Watcher`: `began()` at the first token, `ended(End)`
   once, with text, usage and error. The `runtime.Trial` of the request is one (exposures and built-in
   outcomes). Each callable in `Experiments.beside` is called with a `ports.Served` when the engine has
   taken the request, and may give another: shadows start there, in the same batch, and compare when the
   served answer has `ended`.
5. `Recorder` puts everything on one ordered queue that a thread writes to the store in batches.

A bandit's weights come from a plugin's mode `bandit`, by `Assigner.reweight(name, phase, start, weights)`:
from `start` (unix seconds) on, enrolled units are divided by them, and exposures carry them as propensities.
Before the next `start` they stay as they are, so units are sticky within an epoch; enrolment and salts never
change.

Rule for a store that is down: from the first call that fails (or takes longer than `PATIENCE`) until one
works again, nobody is assigned; requests are served as routing says and are counted as skipped. What was
queued is kept, up to the queue's limit, and written when the store is back; outcomes that clients send are
refused with StoreDown, so that they send them again.
"""
