#include "team.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace native {
namespace {

constexpr int kSpins = 2000;  // looks at a number before sleeping on it: about 50 microseconds
constexpr int kAsked = 160 << 10; // bytes that a thread asks for while it waits
constexpr int kLook = 512;        // and between looks

using Number = std::atomic<int32_t>;

void sleep_on(Number& number, int32_t while_it_is) {
  syscall(SYS_futex, &number, FUTEX_WAIT_PRIVATE, while_it_is, nullptr, nullptr, 0);
}

void wake(Number& number) { syscall(SYS_futex, &number, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }

// Threads that share fewer CPUs must not watch each other.
int spins(int threads) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) < threads ? 0 : kSpins;
}

struct alignas(64) Line {
  Number number;
};

// A job under way. Each phase has one line that counts the chunks not yet done, and one for each thread that
// counts those taken of its range.
class Run {
 public:
  void begin(Job& job, int threads) {
    job_ = &job;
    threads_ = threads;
    phases_ = job.phases();
    spins_ = spins(threads);
    const size_t lines = static_cast<size_t>(phases_) * (threads + 1);
    if (lines > size_) {
      lines_.reset(new Line[lines]);
      size_ = lines;
    }
    firsts_.clear();
    soon_.clear();
    for (int p = 0; p < phases_; ++p) {
      left(p).store(job.chunks(p), std::memory_order_relaxed);
      for (int t = 0; t < threads; ++t) taken(p, t).store(0, std::memory_order_relaxed);
      for (int t = 0; t <= threads; ++t) firsts_.push_back(job.first(p, t, threads));
      for (int t = 0; t < threads; ++t) soon_.push_back(job.soon(p, t, threads));
    }
  }

  void take_part(int me) {
    if (me >= threads_) return;
    for (int p = 0; p < phases_; ++p) {
      const int done = take_chunks(p, me);
      if (done && left(p).fetch_sub(done) == done) {
        if (sleepers_.load()) wake(left(p));
      } else {
        await(p, me);
      }
      if (me == 0) job_->done(p);
    }
  }

  Number users{0};  // threads that may still look at the numbers

 private:
  int take_chunks(int p, int me) {
    int done = 0;
    for (int i = 0; i < threads_; ++i) {
      const int owner = (me + i) % threads_;
      const int* first = &firsts_[static_cast<size_t>(p) * (threads_ + 1) + owner];
      const int begin = first[0], end = first[1];
      Number& next = taken(p, owner);
      while (next.load(std::memory_order_relaxed) < end - begin) {
        const int chunk = begin + next.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= end) break;
        job_->run(p, chunk, {owner, threads_, begin, end, i == 0});
        ++done;
      }
    }
    return done;
  }

  void await(int p, int me) {
    if (const char* soon = soon_[static_cast<size_t>(p) * threads_ + me])
      for (int at = 0; spins_ && at < kAsked; at += kLook) {
        if (left(p).load(std::memory_order_acquire) == 0) return;
        for (int line = 0; line < kLook; line += 64) _mm_prefetch(soon + at + line, _MM_HINT_T1);
      }
    for (int i = 0; i < spins_; ++i) {
      if (left(p).load(std::memory_order_acquire) == 0) return;
      _mm_pause();
    }
    sleepers_.fetch_add(1);
    while (const int32_t some = left(p).load()) sleep_on(left(p), some);
    sleepers_.fetch_sub(1);
  }

  Number& left(int p) { return lines_[static_cast<size_t>(p) * (threads_ + 1)].number; }
  Number& taken(int p, int thread) { return lines_[static_cast<size_t>(p) * (threads_ + 1) + 1 + thread].number; }

  Job* job_ = nullptr;  // gone once all is done: who comes late looks at the numbers only
  int threads_ = 0, phases_ = 0, spins_ = 0;
  size_t size_ = 0;
  std::unique_ptr<Line[]> lines_;
  std::vector<int> firsts_;  // of each phase, where threads' ranges begin
  std::vector<const char*> soon_;  // of each phase and thread
  Number sleepers_{0};
};

class Team {
 public:
  void work(Job& job, int threads) {
    Run& run = begin(job, threads);
    run.take_part(0);
    const std::lock_guard<std::mutex> hold(lock_);
    if (current_ == &run) current_ = nullptr;
    run.users.fetch_sub(1);
  }

 private:
  Run& begin(Job& job, int threads) {
    Run* run = nullptr;
    {
      const std::lock_guard<std::mutex> hold(lock_);
      for (auto& one : runs_)
        if (one->users.load() == 0) run = one.get();
      if (!run) run = runs_.emplace_back(new Run).get();
      run->begin(job, threads);
      run->users.store(1);
      current_ = run;
      while (workers_ < threads - 1 && start_worker()) {
      }
      epoch_.fetch_add(1);
    }
    if (asleep_.load()) wake(epoch_);
    return *run;
  }

  struct Hire {
    Team* team;
    int me;
  };

  bool start_worker() {
    auto* hire = new Hire{this, workers_ + 1};
    pthread_t thread;
    if (pthread_create(&thread, nullptr, &serve, hire) != 0) {  // too many processes: the others do the work
      delete hire;
      return false;
    }
    pthread_setname_np(thread, "engine-team");
    pthread_detach(thread);
    ++workers_;
    return true;
  }

  static void* serve(void* given) {
    const Hire hire = *static_cast<Hire*>(given);
    delete static_cast<Hire*>(given);
    for (int32_t seen = 0;;) {
      if (Run* run = hire.team->next(seen)) {
        run->take_part(hire.me);
        run->users.fetch_sub(1);
      }
    }
    return nullptr;
  }

  // The run that began after `seen`; null if it is over.
  Run* next(int32_t& seen) {
    for (int i = 0; i < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++i) _mm_pause();
    asleep_.fetch_add(1);
    while (epoch_.load() == seen) sleep_on(epoch_, seen);
    asleep_.fetch_sub(1);
    const std::lock_guard<std::mutex> hold(lock_);
    seen = epoch_.load();
    if (current_) current_->users.fetch_add(1);
    return current_;
  }

  std::mutex lock_;
  std::vector<std::unique_ptr<Run>> runs_;
  Run* current_ = nullptr;
  int workers_ = 0;
  Number epoch_{0}, asleep_{0};
};

// Threads do not survive a fork, so a child gets a team of its own. Never destroyed: threads look at it.
Team& team() {
  static std::mutex lock;
  static Team* here = nullptr;
  static pid_t owner = 0;
  const std::lock_guard<std::mutex> hold(lock);
  if (owner != getpid()) {
    here = new Team;
    owner = getpid();
  }
  return *here;
}

}  // namespace

void work(Job& job, int threads) {
  if (threads > 1) return team().work(job, threads);
  for (int p = 0, phases = job.phases(); p < phases; ++p) {
    for (int c = 0, chunks = job.chunks(p); c < chunks; ++c) job.run(p, c, {0, 1, 0, chunks, true});
    job.done(p);
  }
}

}  // namespace native
