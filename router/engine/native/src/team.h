// A team of threads that works through the phases of one job at a time.
//
// A phase is a number of chunks that any thread may take; the next phase begins when all of them are done.
// Nobody waits for a thread, only for work: one that sleeps, or that the system gave to somebody else, is
// missed by its hands alone, and finds on its return that the others went on. So the team needs no barrier,
// and a job is done even if no other thread ever comes.
#pragma once

namespace native {

// The range [begin, end) that a chunk belongs to, of `owner` among `all` threads. `own`: its owner takes it, who
// is likely to take the rest of the range, too.
struct Share {
  int owner, all, begin, end;
  bool own;
};

class Job {
 public:
  virtual ~Job() = default;
  virtual int phases() const = 0;
  virtual int chunks(int phase) const = 0;
  // Where the range of a thread begins; with thread = threads where the last ends.
  virtual int first(int phase, int thread, int threads) const {
    return static_cast<int>(static_cast<long>(chunks(phase)) * thread / threads);
  }
  virtual void run(int phase, int chunk, const Share& share) = 0;
  // Memory that a thread reads soon after the phase: it asks for some of it while it waits for the others. Or null.
  virtual const char* soon(int, int, int) const { return nullptr; }
  // Called on the caller's thread once all chunks of the phase are done.
  virtual void done(int) {}
};

// Returns when every chunk of every phase is done; the caller takes part. Threads other than the caller are
// started when first needed, watch for the next job for some 50 microseconds and then sleep.
void work(Job& job, int threads);

// The same for one phase: f(chunk, share).
template <class F>
void each(int chunks, int threads, F&& f) {
  struct One : Job {
    One(int n, F& f) : n(n), f(f) {}
    int phases() const override { return 1; }
    int chunks(int) const override { return n; }
    void run(int, int chunk, const Share& share) override { f(chunk, share); }
    int n;
    F& f;
  } job(chunks, f);
  work(job, chunks < threads ? chunks : threads);
}

}  // namespace native
