//! Every bound of the system, once, with its reason.

use std::time::Duration;

/// KV slots a page: small enough that the last page of a session wastes little, large enough that tables stay short.
pub const PAGE_TOKENS: usize = 16;

/// Pairs of a drafter's row that travel with a draft; the row is cut to this *before* it is drawn from, so it is exact.
pub const WIRE_TOP_K: usize = 64;

/// Longest draft block. The verify batch is sized by it; longer blocks never paid in measurements of our peers.
pub const MAX_DRAFT_LENGTH: usize = 64;

/// Draft length when the request names none.
pub const DEFAULT_DRAFT_LENGTH: usize = 6;

/// Unanswered blocks an expert grants a session (`Held.slots`).
pub const DEFAULT_SLOTS: u32 = 2;

/// Ids in one `History` message: 16 kB as varints, so that no stream hogs a shared connection.
pub const HISTORY_IDS: usize = 4_096;

/// Token budget of one batch: bounds the time of a step, so that a long prefill never blocks others for long.
pub const BATCH_TOKENS: usize = 512;

/// Sessions a node holds open at once.
pub const MAX_SESSIONS: usize = 1_024;

/// Sessions that wait at an engine for a slot or for pages: a few rounds of what a node of this size serves. More
/// would wait longer than a client does, and another node may have room.
pub const MAX_WAITING: usize = 256;

/// Streams one connection carries.
pub const MAX_STREAMS: u32 = 1_024;

/// HTTP/2 stream window, bytes. The connection window is 16 times this, so one stalled stream cannot close it.
pub const STREAM_WINDOW: u32 = 256 * 1024;

/// HTTP/2 connection window, bytes.
pub const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// Largest control message, bytes.
pub const CONTROL_BYTES: usize = 64 * 1024;

/// Largest draft block, bytes.
pub const BLOCK_BYTES: usize = 256 * 1024;

/// Largest `Generate` request or `Open` with text, bytes.
pub const REQUEST_BYTES: usize = 4 * 1024 * 1024;

/// Largest text that a chat template makes of a request, bytes: four times the longest request.
pub const RENDERED_BYTES: usize = 4 * REQUEST_BYTES;

/// What one rendering of a chat template may cost, in the template engine's fuel: an instruction is one, and so are 64
/// bytes that are made or looked at. Thirty times the text of the longest request, or some twenty thousand messages; and
/// never more than 128 MB, however a template doubles its strings.
pub const TEMPLATE_FUEL: u64 = 2_000_000;

/// Deadline of a request that names none.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(600);

/// The longest deadline an operator may allow: longer ones are mistakes, and overflow clocks.
pub const LONGEST_REQUEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a client may leave its stream unread before the session is cancelled.
pub const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Sessions the router admits at once.
pub const MAX_ADMITTED: usize = 4_096;

/// Bytes of prompts that a router's sessions hold at once, MiB: places for 4,096 prompts of the greatest size would be more
/// memory than a router has.
pub const PROMPT_MEMORY_MIB: u64 = 256;

/// Bytes of requests that a router holds while they come in, MiB.
pub const READING_MEMORY_MIB: u64 = 128;

/// Tenants that have metrics of their own: each has some sixty series at every router.
pub const METRICS_TENANTS: usize = 20;

/// Bytes of a prompt that make a placement key; a shorter prompt has none.
pub const PLACEMENT_KEY_BYTES: usize = 1_024;

/// Stop strings a request may name, and the bytes of each.
pub const MAX_STOP_STRINGS: usize = 16;

/// Bytes of one stop string.
pub const STOP_STRING_BYTES: usize = 256;

/// Alternatives a position reports with logprobs.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Period of `Node/Watch`.
pub const WATCH_PERIOD: Duration = Duration::from_millis(250);

/// Silence of a status stream after which its node counts as hung.
pub const WATCH_SILENCE: Duration = Duration::from_secs(3);

/// A kind of node that has been missing for less than this may only be restarting: a session whose text would change
/// without it waits so long before it goes on.
pub const MAY_COME_BACK: Duration = Duration::from_secs(2);

/// Sessions of different requests that a node fails by its own fault, one after another, before it gets no new ones.
pub const QUARANTINE_FAILURES: usize = 3;

/// The time within which these sessions fail.
pub const QUARANTINE_WINDOW: Duration = Duration::from_secs(10);

/// How long such a node gets no sessions before one may try it again.
pub const QUARANTINE_RETRY: Duration = Duration::from_secs(5);

/// Work of at most this many tokens goes before any prefill: two verified blocks of the greatest length.
pub const SHORT_TOKENS: usize = 2 * MAX_DRAFT_LENGTH;

/// One part in so many of a batch's tokens is kept for the oldest prefill, so that short work never stops it.
pub const PREFILL_SHARE: usize = 8;

/// A keyed placement goes elsewhere where a node would carry more than this times the mean load.
pub const PLACEMENT_LOAD_FACTOR: f64 = 1.25;
