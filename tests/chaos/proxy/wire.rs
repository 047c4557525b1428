//! What the proxy understands of Kafka's frames: whose turn it is, and whether a transaction ends
//! in a commit or an abort.
//!
//! Owns: reading the head of a request and the error of the answer to an `EndTxn`. Never: what is
//! in any other request; a frame that cannot be read has no head, and passes.

/// Shorter frames have no request header.
const HEADER_MIN: usize = 8;
/// From this version on strings are compact and there are tagged fields.
const END_TXN_FLEXIBLE: i16 = 3;

/// The requests that a rule speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Produce,
    Fetch,
    ListOffsets,
    Metadata,
    OffsetCommit,
    OffsetFetch,
    FindCoordinator,
    JoinGroup,
    Heartbeat,
    LeaveGroup,
    SyncGroup,
    InitProducerId,
    AddPartitionsToTxn,
    AddOffsetsToTxn,
    /// The end of a transaction, whichever.
    EndTxn,
    /// An `EndTxn` that commits.
    Commit,
    /// An `EndTxn` that aborts.
    Abort,
    TxnOffsetCommit,
    ConsumerGroupHeartbeat,
}

impl Which {
    /// Kafka's number of the request.
    pub const fn api_key(self) -> i16 {
        match self {
            Self::Produce => 0,
            Self::Fetch => 1,
            Self::ListOffsets => 2,
            Self::Metadata => 3,
            Self::OffsetCommit => 8,
            Self::OffsetFetch => 9,
            Self::FindCoordinator => 10,
            Self::JoinGroup => 11,
            Self::Heartbeat => 12,
            Self::LeaveGroup => 13,
            Self::SyncGroup => 14,
            Self::InitProducerId => 22,
            Self::AddPartitionsToTxn => 24,
            Self::AddOffsetsToTxn => 25,
            Self::EndTxn | Self::Commit | Self::Abort => 26,
            Self::TxnOffsetCommit => 28,
            Self::ConsumerGroupHeartbeat => 68,
        }
    }

    pub(super) fn fits(self, head: &Head) -> bool {
        let ends_so = |commit| head.end_txn.as_ref().is_some_and(|end| end.commit == commit);
        match self {
            Self::Commit => ends_so(true),
            Self::Abort => ends_so(false),
            _ => self.api_key() == head.api_key,
        }
    }
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub api_key: i16,
    pub api_version: i16,
    pub correlation: i32,
    /// What an `EndTxn` says.
    pub end_txn: Option<EndTxn>,
}

/// The end of a transaction, as its producer asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndTxn {
    pub transactional_id: String,
    pub producer_id: i64,
    pub epoch: i16,
    pub commit: bool,
}

impl Head {
    /// Reads the first bytes of a frame, after its length. `None` where that is no request.
    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        if frame.len() < HEADER_MIN {
            return None;
        }
        let mut bytes = Bytes(frame);
        let mut head = Self {
            api_key: bytes.i16()?,
            api_version: bytes.i16()?,
            correlation: bytes.i32()?,
            end_txn: None,
        };
        if head.api_key == Which::EndTxn.api_key() {
            head.end_txn = EndTxn::parse(head.api_version, bytes);
        }
        Some(head)
    }
}

impl EndTxn {
    /// Reads what follows the correlation id.
    fn parse(version: i16, mut bytes: Bytes<'_>) -> Option<Self> {
        // The client's id is of the old kind in every version, and may be null.
        let client = bytes.i16()?;
        bytes.take(usize::try_from(client).unwrap_or(0))?;
        let id = if version >= END_TXN_FLEXIBLE {
            bytes.skip_tags()?;
            let length = bytes.varint()?.checked_sub(1)?;
            bytes.take(length)?
        } else {
            let length = usize::try_from(bytes.i16()?).ok()?;
            bytes.take(length)?
        };
        Some(Self {
            transactional_id: String::from_utf8_lossy(id).into_owned(),
            producer_id: bytes.i64()?,
            epoch: bytes.i16()?,
            commit: bytes.take(1)? != [0],
        })
    }
}

/// The error of an answer to an `EndTxn`; zero is none. The answer is the frame after its length.
pub(super) fn end_txn_error(version: i16, answer: &[u8]) -> Option<i16> {
    let mut bytes = Bytes(answer);
    bytes.take(4)?;
    if version >= END_TXN_FLEXIBLE {
        bytes.skip_tags()?;
    }
    bytes.take(4)?; // The throttle time.
    bytes.i16()
}

/// The bytes that are left.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn i16(&mut self) -> Option<i16> {
        self.array().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// Lengths only: one that takes more than four bytes is no length that fits here.
    fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let [byte] = self.array()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn skip_tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            self.varint()?;
            let length = self.varint()?;
            self.take(length)?;
        }
        Some(())
    }
}
