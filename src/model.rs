//! Floor 2: PaliGemma 1 and 2 on candle.
