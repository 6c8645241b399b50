// A driver that says what it is told to: PRETEND_INIT is what cuInit returns.

extern "C" {

int cuInit(unsigned) { return PRETEND_INIT; }

int cuDriverGetVersion(int* version) {
  *version = 12040;
  return 0;
}

int cuDeviceGetCount(int* count) {
  *count = 1;
  return 0;
}

int cuGetErrorString(int, const char** text) {
  *text = "pretended";
  return 0;
}
}
