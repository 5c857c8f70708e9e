//! `/v1/capture`: frames seen at ports, streamed as pcapng.

use super::answer::{ErrorBody, Fail, Query};
use super::stream::channel;
use super::{Shared, lock};
use crate::pcapng::{self, Counts};
use crate::plane::{Begun, CaptureView, wall};
use crate::refusal::{Kind, Refusal, nearest};
use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use utoipa::{IntoParams, ToSchema};
use vswitch_core::capture::filter::WORDS;
use vswitch_core::capture::{Captured, Drops, SNAPLEN, Spec};

/// Bytes sent to the client at once, about.
const PIECE: usize = 64 << 10;
/// Header that names the capture, for `DELETE /v1/captures/{id}`.
pub(crate) const ID_HEADER: &str = "capture-id";

/// Which way frames go at a port, seen from the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes a parameter, which is read by hand")]
enum Way {
    #[default]
    Both,
    Ingress,
    Egress,
}

/// What to do about dropped frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes a parameter, which is read by hand")]
enum Dropped {
    #[default]
    False,
    True,
    Only,
}

/// What to capture.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters, which are read by hand")]
pub(crate) struct Params {
    /// A port; may be given several times. Without it, all ports, and those that will be added.
    #[param(style = Form, explode)]
    port: Option<Vec<String>>,
    /// Only frames that pass, in the words of pcap-filter(7): `tcp port 80 and host 192.0.2.1`.
    filter: Option<String>,
    /// Received by the switch, sent by it, or both.
    #[param(inline)]
    direction: Option<Way>,
    /// Show dropped frames too, with the reason as their comment; or them only.
    #[param(inline)]
    drops: Option<Dropped>,
    /// Bytes kept of each frame; 0 keeps all.
    snaplen: Option<u32>,
    /// End after so many frames.
    count: Option<u64>,
    /// End after so many seconds.
    seconds: Option<u64>,
}

/// What was asked for.
#[derive(Debug)]
struct Wanted {
    ports: BTreeSet<String>,
    filter: Option<String>,
    spec: Spec,
    count: u64,
    seconds: Option<u64>,
}

fn bad(thing: String, reason: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal::new(Kind::Invalid, "reading", thing, reason, remedy)
}

impl Wanted {
    fn read(pairs: Vec<(String, String)>) -> Result<Wanted, Refusal> {
        let mut wanted = Wanted {
            ports: BTreeSet::new(),
            filter: None,
            spec: Spec {
                filter: None,
                ingress: true,
                egress: true,
                drops: Drops::Ignore,
                snaplen: SNAPLEN,
            },
            count: u64::MAX,
            seconds: None,
        };
        for (name, value) in pairs {
            let thing = || format!("the query's `{name}={value}`");
            let number = || {
                let n = value.parse::<u64>().ok().filter(|n| *n <= 1 << 53);
                n.ok_or_else(|| bad(thing(), "that isn't a number", "write digits only"))
            };
            let positive = || match number()? {
                0 => Err(bad(thing(), "nothing would be captured", "write 1 or more")),
                n => Ok(n),
            };
            let spec = &mut wanted.spec;
            match name.as_str() {
                "port" => drop(wanted.ports.insert(value)),
                "filter" if value.trim().is_empty() => {}
                "filter" => {
                    spec.filter = Some(value.parse().map_err(|e| unreadable(&value, &e))?);
                    wanted.filter = Some(value);
                }
                "direction" => {
                    (spec.ingress, spec.egress) = match value.as_str() {
                        "both" => (true, true),
                        "ingress" => (true, false),
                        "egress" => (false, true),
                        _ => {
                            let remedy = "write ingress, egress or both";
                            return Err(bad(thing(), "no such direction", remedy));
                        }
                    }
                }
                "drops" => {
                    spec.drops = match value.as_str() {
                        "false" => Drops::Ignore,
                        "true" => Drops::Include,
                        "only" => Drops::Only,
                        _ => {
                            let remedy = "write true, false or only";
                            return Err(bad(thing(), "that can't be", remedy));
                        }
                    }
                }
                "snaplen" => {
                    spec.snaplen = match number()? {
                        0 => SNAPLEN,
                        n => SNAPLEN.min(n as usize),
                    }
                }
                "count" => wanted.count = positive()?,
                "seconds" => wanted.seconds = Some(positive()?),
                _ => {
                    let remedy = "GET /v1/openapi.json describes the query";
                    return Err(bad(thing(), "no such parameter", remedy));
                }
            }
        }
        Ok(wanted)
    }
}

fn unreadable(filter: &str, e: &vswitch_core::capture::FilterError) -> Refusal {
    let known = WORDS.iter().copied();
    let remedy = match e.unknown.as_deref().and_then(|w| nearest(w, known)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`vswitchctl capture --help` has the words of filters".into(),
    };
    bad(format!("the filter `{filter}`"), e.to_string(), remedy)
}

/// Frames seen at ports, as pcapng, until the client closes, the count is reached, the seconds are over, or somebody
/// deletes the capture. Its number is in the header `capture-id`.
#[utoipa::path(get, path = "/v1/capture", params(Params),
    responses((status = 200, description = "pcapng", content_type = "application/x-pcapng", body = Vec<u8>),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn capture(
    State(plane): State<Shared>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Fail> {
    let Wanted {
        ports,
        filter,
        spec,
        count,
        seconds,
    } = Wanted::read(query)?;
    let snaplen = spec.snaplen;
    let begun = lock(&plane).begin_capture(ports, filter.clone(), spec)?;
    let head = [
        (
            header::CONTENT_TYPE.as_str(),
            pcapng::CONTENT_TYPE.to_owned(),
        ),
        (ID_HEADER, begun.id.to_string()),
    ];
    let (pieces, body) = channel();
    let drain = Drain {
        guard: Guard {
            plane,
            id: begun.id,
        },
        begun,
        filter,
        snaplen,
        left: count,
        written: Vec::new(),
        out: Vec::new(),
    };
    tokio::spawn(drain.run(pieces, seconds.map(Duration::from_secs)));
    Ok((head, HttpBody::new(body)).into_response())
}

/// Lists the captures that run.
#[utoipa::path(get, path = "/v1/captures", responses((status = 200, body = Vec<CaptureView>)))]
pub(crate) async fn list(State(plane): State<Shared>) -> Json<Vec<CaptureView>> {
    Json(lock(&plane).capture_views())
}

/// Ends a capture; its stream ends with the frames captured so far and the statistics.
#[utoipa::path(delete, path = "/v1/captures/{id}", params(("id" = u32, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn end(
    State(plane): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Fail> {
    let known = id.parse().is_ok_and(|id| lock(&plane).end_capture(id));
    if known {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Fail(Refusal::new(
        Kind::NotFound,
        "ending",
        format!("capture `{id}`"),
        "no such capture",
        "`vswitchctl capture --list` shows what there is",
    )))
}

/// Ends the capture whatever becomes of its task.
#[derive(Debug)]
struct Guard {
    plane: Shared,
    id: u32,
}

impl Guard {
    fn end(&self) {
        lock(&self.plane).end_capture(self.id);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

/// Takes copies out of a session and sends them to its client.
#[derive(Debug)]
struct Drain {
    guard: Guard,
    begun: Begun,
    filter: Option<String>,
    snaplen: usize,
    /// Frames still to be written.
    left: u64,
    /// Frames written, by interface.
    written: Vec<u64>,
    out: Vec<u8>,
}

impl Drain {
    async fn run(mut self, pieces: Sender<Bytes>, limit: Option<Duration>) {
        let over = async {
            match limit {
                Some(d) => tokio::time::sleep(d).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        pcapng::section(&mut self.out);
        self.announce();
        while self.left > 0 {
            if self.gather() {
                let piece = std::mem::take(&mut self.out);
                tokio::select! {
                    room = pieces.reserve() => match room {
                        Ok(place) => place.send(piece.into()),
                        Err(_) => return,
                    },
                    () = &mut over => { self.out = piece; break }
                    _ = &mut self.begun.ended => { self.out = piece; break }
                }
                continue;
            }
            if self.begun.session.wait() {
                continue;
            }
            tokio::select! {
                () = self.begun.ready.notified() => {}
                () = pieces.closed() => return,
                () = &mut over => break,
                _ = &mut self.begun.ended => break,
            }
        }
        // No more comes; what has come is still the client's.
        self.guard.end();
        while self.left > 0 && self.gather() {
            let piece = std::mem::take(&mut self.out);
            if pieces.send(piece.into()).await.is_err() {
                return;
            }
        }
        self.conclude();
        let _ = pieces.send(self.out.into()).await;
    }

    /// Writes the copies that wait, a piece at most; false if there is nothing to send.
    fn gather(&mut self) -> bool {
        while self.left > 0 && self.out.len() < PIECE {
            let Some(copy) = self.begun.session.pop() else {
                break;
            };
            self.write(copy);
        }
        !self.out.is_empty()
    }

    fn write(&mut self, mut copy: Captured) {
        if copy.interface as usize >= self.written.len() {
            self.announce();
        }
        copy.finish();
        pcapng::packet(&mut self.out, &copy);
        if let Some(n) = self.written.get_mut(copy.interface as usize) {
            *n += 1;
        }
        self.left -= 1;
        self.begun.session.recycle(copy);
    }

    /// Writes the interfaces that aren't yet.
    fn announce(&mut self) {
        let known = self.begun.interfaces.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        for (name, _) in known.iter().skip(self.written.len()) {
            pcapng::interface(&mut self.out, name, self.snaplen, self.filter.as_deref());
            self.written.push(0);
        }
    }

    /// Writes the statistics.
    fn conclude(&mut self) {
        self.announce();
        let known = self.begun.interfaces.lock();
        let known = known.unwrap_or_else(PoisonError::into_inner);
        let now = wall();
        for (i, ((_, counts), written)) in known.iter().zip(&self.written).enumerate() {
            let counts = Counts {
                seen: counts.seen.load(Relaxed),
                passed: counts.passed.load(Relaxed),
                lost: counts.lost.load(Relaxed),
                written: *written,
            };
            pcapng::statistics(&mut self.out, i as u32, now, &counts);
        }
    }
}
