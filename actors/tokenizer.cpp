#include "actors/tokenizer.hpp"

#include <utility>

namespace sluice::actors {

TokenizerActor::behavior_type tokenizer(TokenizerActor::pointer self, AdmissionSink session) {
  return {
      [self, session](tokenize_atom, const EngineFactsPtr& engine, const transport::Peer& owner,
                      const transport::Submit& submit) {
        const auto now =
            static_cast<engine::Nanoseconds>(self->clock().now().time_since_epoch().count());
        auto admission = admit(engine, owner, submit, now);
        if (admission)
          self->send(session, tokenize_atom::value, std::move(*admission));
        else
          self->send(session, refused_atom::value,
                     Refusal{submit.stream, submit.epoch, admission.error()});
      },
  };
}

}  // namespace sluice::actors
