package worker

import (
	"context"
	"errors"
	"time"

	"github.com/armature-go/armature/rpc"
)

// job is the work that runs on a server. Only one job at a time runs on a server.
type job struct {
	// token is the token of the step that the job carries out. It is empty for ChangeInterface and for the removal of an orphan.
	token string
	stop  context.CancelCauseFunc // cancels the context of the job
}

// errPreempted is the cause with which the context of a job is canceled, because another operation on the server has begun. The step of the job is then
// not wanted any more.
var errPreempted = errors.New("another operation on the server has begun")

const (
	// soon is how long a job waits for the job before it on the same server. That job has often done its work, and waits for the reply to its report.
	soon = time.Second
	// stopTime is how long a job that was stopped may take to end. A driver returns from a call soon after the call's context is canceled.
	stopTime = 5 * time.Second
)

// beginJob waits until no other job runs on a server, and begins a job. The argument wait is the longest wait. beginJob returns the context of the job, and
// the function that ends the job. The function is nil if another job still runs.
func (s *Service) beginJob(ctx context.Context, id, token string, wait time.Duration) (context.Context, func()) {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if s.locks.Lock(limited, id) != nil {
		return ctx, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	s.mu.Lock()
	s.jobs[id] = &job{token, stop}
	s.mu.Unlock()
	return ctx, func() {
		stop(nil)
		s.mu.Lock()
		delete(s.jobs, id)
		s.mu.Unlock()
		s.locks.Unlock(id)
		s.guests.jobEnded(id)
	}
}

// jobOn returns the job that runs on a server, or nil.
func (s *Service) jobOn(id string) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[id]
}

// step is a request to carry out a step of an operation on a server.
type step struct {
	work, id, token string
	// preempts means that the step stops a job without a token. A request without preempts is dropped while such a job runs.
	preempts bool
	// yields means that the step never stops a job: the request is dropped while another job runs. Any other step stops a job that yields.
	yields bool
	// drop is called if the step is not wanted, or is not wanted any more. Nil: there is nothing to do.
	drop func() error
}

// runStep calls the function do if the step is wanted and no other job runs on the server. A job that still runs after a short wait is stopped if its
// step is not wanted any more, because its driver may never return. Otherwise runStep drops the request instead of waiting longer, because a waiting request
// occupies a slot. The conductor repeats the request as long as the step is wanted.
func (s *Service) runStep(ctx context.Context, r step, do func(context.Context) error) (*rpc.None, error) {
	running, end := s.beginJob(ctx, r.id, r.token, soon)
	if end == nil {
		stopped, err := s.stopJob(ctx, r)
		if err != nil || !stopped {
			return &rpc.None{}, err
		}
		if running, end = s.beginJob(ctx, r.id, r.token, stopTime); end == nil {
			s.logBusy(ctx, r)
			return &rpc.None{}, nil
		}
	}
	defer end()
	wanted, err := s.beginStep(running, r.work, r.id, r.token)
	if err == nil && wanted {
		err = do(running)
	}
	if err != nil && errors.Is(context.Cause(running), errPreempted) { // the message would be redelivered in vain
		s.cfg.Logger.InfoContext(ctx, "work stopped, no longer wanted", "work", r.work, "server", r.id, "error", err)
		wanted, err = false, nil
	}
	if err == nil && !wanted {
		err = r.dropped()
	}
	return &rpc.None{}, err
}

func (r step) dropped() error {
	if r.drop == nil {
		return nil
	}
	return r.drop()
}

// stopJob stops the job on a server if the step of r is wanted. The step of that job is then not wanted any more, because a server has one operation at a
// time, or the conductor repeats its request, because it yields. stopJob returns false if the request r is to be dropped: the job carries out the same step, r yields, r does not preempt a
// job without a token, or the step of r is not wanted.
func (s *Service) stopJob(ctx context.Context, r step) (stopped bool, err error) {
	other := s.jobOn(r.id) // read before the question: a job that begins later may be wanted
	if r.yields || other != nil && (other.token == r.token || other.token == "" && !r.preempts) {
		s.logBusy(ctx, r)
		return false, nil
	}
	wanted, err := s.beginStep(ctx, r.work, r.id, r.token)
	switch {
	case err != nil:
		return false, err
	case !wanted:
		return false, r.dropped()
	case other != nil:
		other.stop(errPreempted)
	}
	return true, nil
}

func (s *Service) logBusy(ctx context.Context, r step) {
	s.cfg.Logger.DebugContext(ctx, "request dropped, other work on the server is running", "work", r.work, "server", r.id)
}

// evict destroys a server that is still an orphan. evict stops the job on the server, because the step of the job is not wanted any more. If the job does not
// end within stopTime, evict leaves the server to the next audit.
func (s *Service) evict(ctx context.Context, id string) error {
	running, end := s.beginJob(ctx, id, "", soon)
	if end == nil {
		other := s.jobOn(id)
		if orphans, err := s.orphans(ctx, []string{id}); err != nil || len(orphans) == 0 || other == nil {
			return err
		}
		other.stop(errPreempted)
		if running, end = s.beginJob(ctx, id, "", stopTime); end == nil {
			return nil
		}
	}
	defer end()
	return s.evictOrphan(running, id)
}

// destroyTimeout is how long the driver may take to destroy a server, the repeated calls of retryDriver included.
const destroyTimeout = 5 * time.Minute

// destroy makes the driver destroy a server.
func (s *Service) destroy(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	return retryDriver(ctx, func() error { return s.cfg.Driver().Destroy(ctx, id) })
}
