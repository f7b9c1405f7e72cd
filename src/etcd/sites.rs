//! Where a store may be reached, and the race to the first place that answers.
//!
//! A name may have several addresses, and any of them may swallow packets. So every address of every endpoint is a
//! [`Site`], and the sites are tried as RFC 8305 ("Happy Eyeballs") tries addresses: the next one starts as soon as
//! one fails, or after [`STAGGER`] without an answer, while the earlier ones go on. The first that answers wins.

use crate::log::quote;
use crate::store::Error;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a site may be silent before the next one is tried beside it (RFC 8305 section 5, "Connection Attempt Delay").
const STAGGER: Duration = Duration::from_millis(250);
/// How long the first attempt waits for names that are still being resolved (RFC 8305 section 3, "Resolution Delay").
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
const _: () = assert!(RESOLUTION_DELAY.as_millis() < STAGGER.as_millis());

/// An endpoint as the settings name it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The URL, without a slash at its end.
    pub(super) url: String,
    /// The host of the URL: a name, or an address without brackets.
    pub(super) host: String,
    /// The port of the URL, or that of its scheme.
    pub(super) port: u16,
}

/// One address of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) endpoint: Rc<Endpoint>,
    pub(super) address: SocketAddr,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.endpoint.url)?;
        if self.endpoint.host == self.address.ip().to_string() {
            return Ok(());
        }
        write!(f, " ({})", self.address)
    }
}

/// How an attempt at one endpoint failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The endpoint did not answer. Another one may serve the call, unless the call was a write that may have
    /// happened.
    Unreached(Error),
    /// The endpoint answered, and every other one would give the same answer.
    Answered(Error),
}

/// What went wrong where, in the order of the attempts.
pub(super) type Failures = Vec<(String, Error)>;

/// The addresses of an endpoint.
async fn resolve(endpoint: Rc<Endpoint>, deadline: Duration) -> Result<Vec<Site>, (String, Error)> {
    let fail = |reason: String| (endpoint.url.clone(), Error::Unavailable(reason));
    let found = tokio::time::timeout(deadline, tokio::net::lookup_host((&*endpoint.host, endpoint.port)));
    let host = quote(&endpoint.host);
    match found.await {
        Ok(Ok(addresses)) => {
            let mut sites: Vec<Site> = Vec::new();
            for address in addresses {
                let site = Site { endpoint: Rc::clone(&endpoint), address };
                if !sites.contains(&site) {
                    sites.push(site);
                }
            }
            if sites.is_empty() { Err(fail(format!("{host} has no address"))) } else { Ok(sites) }
        }
        Ok(Err(error)) => Err(fail(format!("cannot resolve {host}: {}", quote(&error.to_string())))),
        Err(_) => Err(fail(format!("cannot resolve {host} within {deadline:?}"))),
    }
}

/// Opens the first site that answers. Those in `tried` are left out, and the one after `last` comes first. What failed
/// meanwhile is added to `failures`.
///
/// # Errors
/// The answer of a site that every other site would give too, or `None` if no site has answered. Each has `deadline`.
pub(super) async fn race<T>(
    endpoints: &[Rc<Endpoint>],
    tried: &[Site],
    last: Option<&Site>,
    deadline: Duration,
    failures: &mut Failures,
    open: impl AsyncFn(&Site) -> Result<T, Failure>,
) -> Result<(Site, T), Option<Error>> {
    let resolve = async |place, endpoint| (place, resolve(endpoint, deadline).await);
    let attempt = async |site: Site| (tokio::time::timeout(deadline, open(&site)).await, site);
    let each = endpoints.iter().cloned().enumerate();
    let mut resolving: FuturesUnordered<_> = each.map(|(place, endpoint)| resolve(place, endpoint)).collect();
    let mut running = FuturesUnordered::new();
    // The sites that wait for their turn, with the place of their endpoint in the list.
    let mut waiting: VecDeque<(usize, Site)> = VecDeque::new();
    let mut started = false;
    let mut next = Instant::now() + RESOLUTION_DELAY;
    loop {
        if !started && (resolving.is_empty() || next <= Instant::now()) {
            waiting.make_contiguous().sort_by_key(|(place, _)| *place);
            let at = waiting.iter().position(|(_, site)| Some(site) == last);
            waiting.rotate_left(at.map_or(0, |at| at + 1));
            (started, next) = (!waiting.is_empty(), Instant::now());
        }
        if resolving.is_empty() && waiting.is_empty() && running.is_empty() {
            return Err(None);
        }
        tokio::select! {
            biased;
            Some((result, site)) = running.next() => {
                let error = match result {
                    Ok(Ok(made)) => return Ok((site, made)),
                    Ok(Err(Failure::Answered(error))) => return Err(Some(error)),
                    Ok(Err(Failure::Unreached(error))) => error,
                    Err(_) => Error::Unavailable(format!("no answer within {deadline:?}")),
                };
                tracing::debug!(endpoint = %site, %error, "etcd endpoint failed");
                failures.push((site.to_string(), error));
                next = Instant::now();
            }
            Some((place, found)) = resolving.next() => match found {
                Ok(found) => waiting.extend(found.into_iter().filter(|s| !tried.contains(s)).map(|s| (place, s))),
                Err(failure) => failures.push(failure),
            },
            () = tokio::time::sleep_until(next), if !waiting.is_empty() => {
                if started && let Some((_, site)) = waiting.pop_front() {
                    running.push(attempt(site));
                    next = Instant::now() + STAGGER;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn endpoint(host: &str) -> Rc<Endpoint> {
        Rc::new(Endpoint { url: format!("http://{host}:1"), host: host.to_owned(), port: 1 })
    }

    /// What a site does, by the last number of its address, and how long it takes.
    async fn odd(site: &Site, seen: &RefCell<Vec<(u8, Duration)>>, since: Instant) -> Result<u8, Failure> {
        let SocketAddr::V4(address) = site.address else { panic!("an IPv4 address") };
        let last = address.ip().octets()[3];
        seen.borrow_mut().push((last, since.elapsed()));
        match last {
            1 => std::future::pending().await,
            2 => Err(Failure::Unreached(Error::Unavailable("refused".to_owned()))),
            3 => Err(Failure::Answered(Error::Denied("no".to_owned()))),
            _ => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(last)
            }
        }
    }

    type Outcome = (Result<u8, Option<Error>>, Vec<(u8, u128)>, usize);

    /// The result, who was tried after how many staggers, and the number of failures.
    fn run(lasts: &[u8], tried: &[u8], last: Option<u8>) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let site = |n: &u8| Site {
            endpoint: endpoint(&format!("192.0.2.{n}")),
            address: ([192, 0, 2, *n], 1).into(),
        };
        let endpoints: Vec<_> = lasts.iter().map(|n| site(n).endpoint).collect();
        let tried: Vec<_> = tried.iter().map(site).collect();
        let (seen, mut failures) = (RefCell::default(), Failures::new());
        let result = runtime.block_on(async {
            let since = Instant::now();
            let open = async |site: &Site| odd(site, &seen, since).await;
            let deadline = Duration::from_secs(5);
            race(&endpoints, &tried, last.as_ref().map(site).as_ref(), deadline, &mut failures, open).await
        });
        let seen = seen.into_inner().into_iter().map(|(n, after)| (n, staggers(after))).collect();
        (result.map(|(_, n)| n), seen, failures.len())
    }

    /// Whole staggers; a busy machine may be late by most of one.
    fn staggers(after: Duration) -> u128 {
        after.as_millis() / STAGGER.as_millis()
    }

    #[test]
    fn silence_costs_one_stagger_and_a_failure_nothing() {
        assert_eq!(run(&[9], &[], None), (Ok(9), vec![(9, 0)], 0));
        assert_eq!(run(&[1, 9, 8], &[], None), (Ok(9), vec![(1, 0), (9, 1)], 0));
        assert_eq!(run(&[2, 9], &[], None), (Ok(9), vec![(2, 0), (9, 0)], 1));
        assert_eq!(run(&[1, 1, 2, 9], &[], None).1, vec![(1, 0), (1, 1), (2, 2), (9, 2)]);
    }

    #[test]
    fn the_order_goes_on_after_the_last_failure_and_leaves_out_what_was_tried() {
        assert_eq!(run(&[7, 8, 9], &[], Some(8)).1, vec![(9, 0)]);
        assert_eq!(run(&[7, 8, 9], &[9], Some(8)).1, vec![(7, 0)]);
        assert_eq!(run(&[7], &[7], None), (Err(None), vec![], 0));
    }

    #[test]
    fn an_answer_that_all_would_give_ends_the_race() {
        assert_eq!(run(&[1, 3, 9], &[], None).0, Err(Some(Error::Denied("no".to_owned()))));
        let (result, _, failures) = run(&[2, 1, 2], &[], None);
        assert_eq!((result, failures), (Err(None), 3));
    }

    #[test]
    fn a_site_is_told_by_its_address_where_the_url_does_not_tell_it() {
        let address = ([192, 0, 2, 1], 1).into();
        let told = |host: &str| Site { endpoint: endpoint(host), address }.to_string();
        assert_eq!(told("192.0.2.1"), "http://192.0.2.1:1");
        assert_eq!(told("etcd.example"), "http://etcd.example:1 (192.0.2.1:1)");
    }
}
