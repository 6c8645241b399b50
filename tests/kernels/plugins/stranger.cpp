// A plugin of another build: only its header can be read, and what follows must not be.

extern "C" {

struct {
  unsigned abi = PRETEND_ABI;
  const char* interface = "feedfacefeedface";
} table;

const void* sluice_backend_plugin() { return &table; }
}
