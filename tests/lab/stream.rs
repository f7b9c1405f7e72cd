//! Data that both ends can make again from a seed, and a hash over it.

/// A pseudo-random byte stream (SplitMix64).
pub struct Stream {
    state: u64,
}

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next eight bytes.
    pub fn word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Fills a buffer; a tail shorter than eight bytes takes the front of one more word.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A running 64-bit hash (FNV-1a over words of eight bytes, the last one zero-padded).
#[derive(Clone, Copy)]
pub struct Hash(pub u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds bytes; only the last call may have a length that eight does not divide.
    pub fn add(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The UDP payloads of one flow: every payload size from 0 to 1444 bytes (inner packets of 28 to 1472 bytes) and, if
/// wanted, 2972 (3000, fragmented inside), in a shuffled order, each size in a short run of equal datagrams as bulk
/// senders make them. Datagram `n` of a flow is the same at both ends.
pub struct Plan {
    seed: u64,
    sizes: Vec<usize>,
}

impl Plan {
    /// The plan of a flow: `rounds` times every size.
    pub fn new(seed: u64, rounds: usize, fragments: bool) -> Self {
        let mut random = Stream::new(seed);
        let mut sizes = Vec::new();
        for _ in 0..rounds {
            let mut round: Vec<usize> = (0..=1444).chain(fragments.then_some(2972)).collect();
            for i in (1..round.len()).rev() {
                round.swap(i, usize::try_from(random.word() % (i as u64 + 1)).unwrap());
            }
            for size in round {
                let run = 1 + usize::try_from(random.word() % 3).unwrap();
                sizes.extend(std::iter::repeat_n(size, run));
            }
        }
        Self { seed, sizes }
    }

    /// How many datagrams there are.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// The size of datagram `n`.
    pub fn size(&self, n: usize) -> usize {
        self.sizes[n]
    }

    /// The payload of datagram `n`.
    pub fn payload(&self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.sizes[n]];
        Stream::new(self.seed ^ (n as u64).wrapping_mul(0x2545_f491_4f6c_dd1d)).fill(&mut bytes);
        bytes
    }
}
