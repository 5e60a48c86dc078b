#include <histedit.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "kernels/error.h"
#include "launch/commands.h"
#include "launch/world.h"
#include "rpc/client.h"

namespace jubal {
namespace {

constexpr std::chrono::seconds kConnectTimeout{10};

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler sets it");

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  sigaction(SIGINT, &action, nullptr);  // without SA_RESTART: reading a line ends, too
}

const char* Prompt(EditLine*) { return "> "; }

/// Lines typed on the terminal, with editing and history.
class LineReader {
 public:
  LineReader() : history_(history_init()), editor_(el_init("jubal", stdin, stdout, stderr)) {
    HistEvent event{};
    history(history_.get(), &event, H_SETSIZE, 1000);
    el_set(editor_.get(), EL_PROMPT, Prompt);
    el_set(editor_.get(), EL_EDITOR, "emacs");
    el_set(editor_.get(), EL_HIST, history, history_.get());
  }

  /// Without its end of line; nothing at the end of input or when interrupted.
  std::optional<std::string> Next() {
    int size = 0;
    const char* const line = el_gets(editor_.get(), &size);
    if (line == nullptr || size <= 0) return std::nullopt;
    HistEvent event{};
    history(history_.get(), &event, H_ENTER, line);
    std::string text(line, static_cast<std::size_t>(size));
    if (text.ends_with('\n')) text.pop_back();
    return text;
  }

 private:
  struct HistoryDeleter {
    void operator()(History* history) const { history_end(history); }
  };
  struct EditorDeleter {
    void operator()(EditLine* editor) const { el_end(editor); }
  };
  std::unique_ptr<History, HistoryDeleter> history_;
  std::unique_ptr<EditLine, EditorDeleter> editor_;
};

void PrintHelp() {
  fmt::print(
      "What you type joins the text so far, and the model continues it; an empty line lets "
      "it go on.\n"
      "/reset begins a new text, /text prints the text so far, Ctrl-C stops the model, "
      "Ctrl-D leaves.\n");
}

class Chat {
 public:
  explicit Chat(const Options& options)
      : client_(Client::Connect(options.server, kConnectTimeout)) {
    request_.temperature = options.sampling.temperature;
    request_.top_p = options.sampling.top_p;
    request_.top_k = options.sampling.top_k;
    request_.min_p = options.sampling.min_p;
    request_.presence_penalty = options.sampling.presence_penalty;
    request_.frequency_penalty = options.sampling.frequency_penalty;
    request_.repetition_penalty = options.sampling.repetition_penalty;
    request_.seed = options.sampling.seed;
    request_.max_tokens = options.max_tokens;
    request_.stop = options.stop;
    request_.ignore_eos = options.ignore_eos;
  }

  void Run() {
    const ModelInfo model = client_.GetModelInfo();
    if (!model.has_tokenizer) {
      throw UserError(ExitStatus::kUsage,
                      fmt::format("{} is served without a tokenizer, so there is no text to "
                                  "write: give the model directory a tokenizer.model",
                                  model.name));
    }
    fmt::print("{}, {}. /help explains.\n", model.name, model.plan);
    CatchInterrupts();
    LineReader lines;
    while (const std::optional<std::string> line = lines.Next()) {
      if (line->starts_with('/')) {
        Obey(*line);
      } else {
        Continue(*line);
      }
    }
    fmt::print("\n");
  }

 private:
  void Obey(std::string_view command) {
    if (command == "/reset") {
      text_.clear();
    } else if (command == "/text") {
      fmt::print("{}\n", text_);
    } else if (command == "/help") {
      PrintHelp();
    } else {
      fmt::print("There is no {}: /help names what there is.\n", command);
    }
  }

  /// Adds a line to the text and lets the model go on; the text stays as it was if that fails.
  void Continue(const std::string& line) {
    std::string text = text_;
    if (!line.empty()) {
      if (!text.empty() && !text.ends_with('\n')) text += '\n';
      text += line;
    }
    request_.prompt = text;
    interrupted = false;
    try {
      client_.Generate(
          request_,
          [&](const ClientDelta& delta) {
            fmt::print("{}", delta.text);
            std::fflush(stdout);
            text += delta.text;
          },
          interrupted);
      text_ = std::move(text);
      fmt::print("\n");
    } catch (const UserError& error) {
      fmt::print("\n");
      PrintError(error.what());
    }
    interrupted = false;
  }

  Client client_;
  ClientRequest request_;
  std::string text_;  // what was typed and generated
};

}  // namespace

int RunChat(const Options& options) {
  Chat(options).Run();
  return EXIT_SUCCESS;
}

}  // namespace jubal
