//! A cluster whose verdicts are shared: what is known of its endpoints, and what follows for them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::AbortHandle;

use crate::{
    cluster::Cluster,
    discover::State,
    endpoint::EndpointId,
    health::{Counts, DrainTold, Hearsay, Verdict},
    member::Member,
    time,
    verdict::{Advice, Instance, Lead, Leaving, Local, Occasion, Rules, Trial},
};

/// A cluster whose verdicts are shared.
pub(super) struct Followed {
    cluster: Cluster,
    /// The task that hears what happens in it.
    listening: AbortHandle,
    /// Its endpoints, by what they are called in messages, as of the last look.
    ids: HashMap<Instance, EndpointId>,
    /// Requests that had ended when the last period began.
    ended: u64,
    /// Those that ended in the period before.
    requests: u64,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Followed {
    pub(super) fn new(cluster: Cluster, listening: AbortHandle) -> Self {
        Self {
            ended: cluster.totals().ended(),
            requests: 0,
            cluster,
            listening,
            ids: HashMap::new(),
        }
    }

    pub(super) fn is_of(&self, cluster: &Cluster) -> bool {
        self.cluster.shares_state_with(cluster)
    }

    pub(super) fn check_interval(&self) -> Option<Duration> {
        self.cluster.check_interval()
    }

    /// Probes an endpoint at once.
    pub(super) fn probe(&self, instance: Instance) {
        if let Some(id) = self.ids.get(&instance) {
            // Without checks there is nothing to do, nor for an endpoint that is gone.
            self.cluster.probe(id).ok();
        }
    }

    /// What there is to know of it now.
    pub(super) fn look(&mut self, occasion: Occasion, now: Instant) -> Look {
        let mut rules = self.rules(occasion);
        let members = Arc::clone(self.cluster.snapshot().members());
        let locals: Vec<_> = members
            .iter()
            .map(|member| local(member, rules, now))
            .collect();
        rules.ended = locals.iter().map(|local| local.counts).sum();
        self.remember(&members, &locals);
        Look {
            cluster: self.cluster.clone(),
            members,
            locals,
            rules,
        }
    }

    fn rules(&mut self, occasion: Occasion) -> Rules {
        if occasion == Occasion::Period {
            let ended = self.cluster.totals().ended();
            self.requests = ended.saturating_sub(self.ended);
            self.ended = ended;
        }
        let outlier = self.cluster.outlier();
        Rules {
            check_interval: self.cluster.check_interval(),
            slow_start: self.cluster.slow_start_window(),
            compares_rates: outlier.is_some_and(|rules| rules.compares_rates()),
            requests: self.requests,
            ended: Counts::default(),
        }
    }

    fn remember(&mut self, members: &[Arc<Member>], locals: &[Local]) {
        let is_known = |local: &Local| self.ids.contains_key(&local.instance);
        if self.ids.len() != locals.len() || !locals.iter().all(is_known) {
            let ids = members.iter().map(|member| member.endpoint().id.clone());
            let instances = locals.iter().map(|local| local.instance);
            self.ids = instances.zip(ids).collect();
        }
    }

    /// Nobody advises any more.
    pub(super) fn release(&self) {
        let now = time::now();
        for member in self.cluster.snapshot().members().iter() {
            let health = member.health();
            health.hear(Hearsay::None, member.counts(), member.oversight());
            health.hold_trials(None);
            health.leave_probes(false);
            health.pool(None);
            health.hear_leave(DrainTold::default(), member.oversight(), now);
        }
    }
}

/// What this node knows of an endpoint itself.
fn local(member: &Member, rules: Rules, now: Instant) -> Local {
    let health = member.health();
    let has_rules = member.oversight().outlier().is_some();
    Local {
        instance: Instance::new(member.endpoint()),
        counts: Counts {
            good: member.counts().good,
            bad: member.load().failures(),
        },
        recent: health.recent(),
        probed: rules.check_interval.and_then(|_| health.own_probes()),
        ejected: health.ejected().filter(|_| has_rules),
        quiet_until: health.own_quiet_until(now),
        joined: member.joined(),
        known: health.known_since(),
    }
}

/// A cluster as it is at one time.
pub(super) struct Look {
    cluster: Cluster,
    members: Arc<[Arc<Member>]>,
    /// In the order of the members.
    pub(super) locals: Vec<Local>,
    pub(super) rules: Rules,
}

impl Look {
    /// What this node knows itself of endpoints that are about to leave.
    pub(super) fn leaving(&self, now: Instant) -> Vec<Leaving> {
        let is_live = self.cluster.snapshot().discovery() == State::Live;
        let all = self.members.iter().zip(&self.locals);
        all.map(|(member, local)| Leaving {
            instance: local.instance,
            words: member.health().leave(now),
            is_listed: is_live && member.endpoint().draining,
        })
        .collect()
    }

    /// Takes in what others know of that, for each member.
    pub(super) fn hear_leaves(&self, told: Vec<DrainTold>, now: Instant) {
        for (member, told) in self.members.iter().zip(told) {
            member.health().hear_leave(told, member.oversight(), now);
        }
    }

    /// Does as advised for each member.
    pub(super) fn follow(&self, advice: &[Advice], now: Instant) {
        let mut is_ramp_new = false;
        for (member, advice) in self.members.iter().zip(advice) {
            judge(member, advice, now);
            self.check(member, advice.lead);
            if let Some(at) = advice.first_seen {
                is_ramp_new |= member.first_seen(at);
            }
        }
        if is_ramp_new {
            self.cluster.restart_ramps();
        }
    }

    /// Probes it or leaves that to others, whose verdict counts then.
    fn check(&self, member: &Arc<Member>, lead: Lead) {
        let health = member.health();
        health.leave_probes(matches!(lead, Lead::Others { .. }));
        match lead {
            Lead::Own => {}
            Lead::Ask => {
                // It may have left.
                self.cluster.probe(&member.endpoint().id).ok();
            }
            Lead::Others { verdict, nodes } => {
                if self.rules.check_interval.is_some() && health.verdict() != verdict {
                    self.cluster
                        .checked(member, verdict, finding(verdict, nodes));
                }
            }
        }
    }
}

/// Takes what the others say of its requests, and when it is tried.
fn judge(member: &Member, advice: &Advice, now: Instant) {
    let (health, oversight) = (member.health(), member.oversight());
    health.hear(advice.hearsay, member.counts(), oversight);
    match advice.trial {
        Trial::Free => health.hold_trials(None),
        Trial::Held(until) => health.hold_trials(Some(until)),
        Trial::Now => health.hasten_trial(now),
    }
    if let Some(until) = advice.quiet_until {
        health.hear_quiet(until, oversight, now);
    }
    health.pool(advice.pooled);
}

/// What other nodes found, in words.
fn finding(verdict: Verdict, nodes: u16) -> String {
    let found = match verdict {
        Verdict::Healthy => "passed",
        _ => "failed",
    };
    match nodes {
        1 => format!("{found} at another node"),
        nodes => format!("{found} at {nodes} other nodes"),
    }
}
