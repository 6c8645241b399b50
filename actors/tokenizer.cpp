#include "actors/tokenizer.hpp"

#include <utility>

#include "actors/clock.hpp"

namespace sluice::actors {

TokenizerActor::behavior_type tokenizer(TokenizerActor::pointer self, AdmissionSink session) {
  return {
      [self, session](tokenize_atom, const EngineFactsPtr& engine, const transport::Peer& owner,
                      const transport::Submit& submit) {
        auto admission = admit(engine, owner, submit, now(self));
        if (admission)
          self->send(session, tokenize_atom::value, std::move(*admission));
        else
          self->send(session, refused_atom::value,
                     Refusal{submit.stream, submit.epoch, admission.error()});
      },
  };
}

}  // namespace sluice::actors
