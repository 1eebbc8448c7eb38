"""LongCat-Video: text-to-video, and clips that go on segment by segment."""
