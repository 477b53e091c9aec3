//! What the keys of instances are called. PURE.

use std::sync::Arc;

use crate::discover::ServiceName;

/// The channel on which somebody says `<group>:<host>:<port>` when an instance came, changed or
/// went.
pub(crate) const CHANNEL: &str = "service-launched";

/// The names of keys. Those of one group are in one slot of a Redis Cluster, where the group
/// stands in braces.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: Arc<str>,
    is_clustered: bool,
}

impl Keys {
    pub(crate) fn new(prefix: Arc<str>, is_clustered: bool) -> Self {
        Self {
            prefix,
            is_clustered,
        }
    }

    /// The set of the instances of a group, as `<host>:<port>`.
    pub(crate) fn instances(&self, group: &ServiceName) -> String {
        self.name("instances", group)
    }

    /// What the records of a group begin with; the instance is the rest.
    pub(crate) fn heartbeats(&self, group: &ServiceName) -> String {
        self.name("heartbeat", group) + ":"
    }

    /// Whose record that of an instance is.
    pub(crate) fn owner(&self, group: &ServiceName, instance: &str) -> String {
        format!("{}:{instance}", self.name("owner", group))
    }

    /// A random text that stands until everything is lost.
    pub(crate) fn epoch(&self, group: &ServiceName) -> String {
        self.name("epoch", group)
    }

    fn name(&self, kind: &str, group: &ServiceName) -> String {
        let prefix = &self.prefix;
        match self.is_clustered {
            true => format!("{prefix}:{kind}:{{{group}}}"),
            false => format!("{prefix}:{kind}:{group}"),
        }
    }
}

/// What is said on the channel of an instance.
pub(crate) fn message(group: &ServiceName, instance: &str) -> String {
    format!("{group}:{instance}")
}

/// Whether a message is about this group.
pub(super) fn concerns(message: &[u8], group: &ServiceName) -> bool {
    let rest = message.strip_prefix(group.as_str().as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_for_people_and_one_slot_takes_those_of_a_group() {
        let group = "users".into();
        let keys = Keys::new("gateway".into(), false);
        assert_eq!(keys.instances(&group), "gateway:instances:users");
        assert_eq!(keys.heartbeats(&group), "gateway:heartbeat:users:");
        assert_eq!(keys.owner(&group, "a:1"), "gateway:owner:users:a:1");
        let keys = Keys::new("gateway".into(), true);
        assert_eq!(keys.instances(&group), "gateway:instances:{users}");
        assert_eq!(keys.heartbeats(&group), "gateway:heartbeat:{users}:");
    }

    #[test]
    fn a_message_names_its_group() {
        let group = "users".into();
        assert!(concerns(message(&group, "a:1").as_bytes(), &group));
        assert!(concerns(b"users", &group));
        assert!(!concerns(b"users-2:a:1", &group));
        assert!(!concerns(b"", &group));
    }
}
