//! The routes in their order.

use http::{HeaderMap, Method};

use super::{host::bare, index::Index, matching::Match};

/// Routes in order; the first that takes a request decides.
///
/// Built once and then only asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<T> {
    routes: Vec<(Match, T)>,
    /// None where a look at each route is quicker.
    index: Option<Index>,
}

/// So many routes are looked at one by one.
const FEW: usize = 12;

impl<T> Table<T> {
    /// The target of the first route that takes the request. `host` is the value of `Host` or
    /// `:authority`, `path` has no query.
    #[must_use]
    pub fn find(&self, method: &Method, host: &str, path: &str, headers: &HeaderMap) -> Option<&T> {
        let host = bare(host);
        let takes = |(condition, _): &(Match, T)| condition.takes(method, host, path, headers);
        let found = match &self.index {
            Some(index) => index.first(host, path, |number| takes(&self.routes[number])),
            None => self.routes.iter().position(takes),
        };
        found.map(|number| &self.routes[number].1)
    }

    /// The routes in order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Match, &T)> {
        self.routes
            .iter()
            .map(|(condition, target)| (condition, target))
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            routes: Vec::new(),
            index: None,
        }
    }
}

impl<T> FromIterator<(Match, T)> for Table<T> {
    fn from_iter<I: IntoIterator<Item = (Match, T)>>(routes: I) -> Self {
        let routes: Vec<_> = routes.into_iter().collect();
        let conditions = routes.iter().map(|(condition, _)| condition);
        Self {
            index: (routes.len() > FEW).then(|| Index::new(conditions)),
            routes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::{collection::vec, option, prelude::*, sample::select};

    #[test]
    fn the_first_match_decides() {
        let prefixed = |prefix: &str| Match::any().path_prefix(prefix.parse().unwrap());
        let table = Table::from_iter([
            (prefixed("/a/b"), 1),
            (prefixed("/a"), 2),
            (prefixed("/a/c"), 3),
        ]);
        let find = |path| {
            let headers = HeaderMap::new();
            table.find(&Method::GET, "", path, &headers).copied()
        };
        assert_eq!(find("/a/b/x"), Some(1));
        assert_eq!(find("/a/c"), Some(2));
        assert_eq!(find("/b"), None);
        assert_eq!(table.iter().len(), 3);
        assert_eq!(Table::<()>::default().iter().len(), 0);
    }

    /// A route as its author thinks of it.
    #[derive(Clone, Debug)]
    struct Plain {
        host: Option<&'static str>,
        prefix: Option<String>,
        methods: Vec<&'static str>,
        header: Option<(&'static str, &'static str)>,
    }

    impl Plain {
        fn build(&self) -> Match {
            let mut condition = Match::any();
            if let Some(host) = self.host {
                condition = condition.host(host.parse().unwrap());
            }
            if let Some(prefix) = &self.prefix {
                condition = condition.path_prefix(prefix.parse().unwrap());
            }
            for method in &self.methods {
                condition = condition.method(method.parse().unwrap());
            }
            if let Some((name, value)) = self.header {
                let name = HeaderName::from_static(name);
                condition = condition.header(name, HeaderValue::from_static(value));
            }
            condition
        }

        fn takes_host(&self, host: &str) -> bool {
            let Some(pattern) = self.host else {
                return true;
            };
            let host = host.to_lowercase();
            let host = host.split(':').next().unwrap().trim_end_matches('.');
            let labels: Vec<_> = host.split('.').rev().collect();
            let wanted: Vec<_> = pattern.split('.').rev().collect();
            match wanted.split_last() {
                Some((&"*", domain)) => labels.starts_with(domain) && labels.len() > domain.len(),
                _ => labels == wanted,
            }
        }

        fn takes_path(&self, path: &str) -> bool {
            let Some(prefix) = &self.prefix else {
                return true;
            };
            let segments: Vec<_> = path.split('/').skip(1).collect();
            let mut wanted: Vec<_> = prefix.split('/').skip(1).collect();
            // The last, empty segment of `/api/` asks for any segment there.
            let below = wanted.last() == Some(&"");
            if below {
                wanted.pop();
            }
            segments.starts_with(&wanted) && (!below || segments.len() > wanted.len())
        }

        fn takes(&self, method: &str, host: &str, path: &str, sent: &[(&str, &str)]) -> bool {
            self.takes_host(host)
                && self.takes_path(path)
                && (self.methods.is_empty() || self.methods.contains(&method))
                && self.header.is_none_or(|wanted| sent.contains(&wanted))
        }
    }

    fn path() -> impl Strategy<Value = String> {
        vec(select(vec!["a", "b", "ab", ""]), 1..4).prop_map(|s| format!("/{}", s.join("/")))
    }

    fn header() -> impl Strategy<Value = (&'static str, &'static str)> {
        (select(vec!["x-a", "x-b"]), select(vec!["1", "2"]))
    }

    fn method() -> impl Strategy<Value = &'static str> {
        select(vec!["GET", "POST", "PURGE"])
    }

    fn route() -> impl Strategy<Value = Plain> {
        let hosts = vec!["a.com", "b.a.com", "*.a.com", "*.com", "*.b.a.com"];
        (
            option::of(select(hosts)),
            option::of(path()),
            vec(method(), 0..3),
            option::weighted(0.3, header()),
        )
            .prop_map(|(host, prefix, methods, header)| Plain {
                host,
                prefix,
                methods,
                header,
            })
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_naive_one(
            routes in vec(route(), 0..4 * FEW),
            method in method(),
            host in select(vec!["a.com", "A.com:80", "b.a.com.", "c.b.A.com", "com", "ba.com", ""]),
            path in path(),
            sent in vec(header(), 0..3),
        ) {
            let table: Table<usize> =
                routes.iter().enumerate().map(|(i, route)| (route.build(), i)).collect();
            let headers: HeaderMap = sent
                .iter()
                .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
                .fold(HeaderMap::new(), |mut headers, (name, value)| {
                    headers.append(name, value);
                    headers
                });
            let naive = routes.iter().position(|route| route.takes(method, host, &path, &sent));
            let method: Method = method.parse().unwrap();
            prop_assert_eq!(table.find(&method, host, &path, &headers).copied(), naive);
        }

        #[test]
        fn no_host_or_path_panics(host in "\\PC{0,12}", path in "\\PC{0,12}") {
            let condition = Match::any()
                .host("*.a".parse().unwrap())
                .path_prefix("/a".parse().unwrap());
            let naive = path == "/a" || path.starts_with("/a/");
            let takes = condition.matches(&Method::GET, &host, &path, &HeaderMap::new());
            prop_assert!(!takes || naive);
        }
    }
}
