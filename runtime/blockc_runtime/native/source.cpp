// Which sources this library was built from, so that a stale one is not used.

extern "C" __attribute__((visibility("default"))) const char* blockc_source() { return BLOCKC_SOURCE; }
