package membership

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/outage"
)

// MemberConfig configures a [MemberPart]. Kind and Host are required.
type MemberConfig struct {
	Self

	// Every is the time between heartbeats. Default a sixth of DownAfter: 10 s, as Nova's report_interval.
	Every time.Duration
	// MinVersion is the lowest version of other members of the same kind with which the service can run. The service does not start while a
	// member with a lower version exists. Default 0: any version.
	MinVersion int
	// LowerWait is the maximum time that the Announcement waits if this process serves lower versions than a process that ran before. In this
	// time every RPC client reads its version caps again. Default 12 s: 10 s for rpc.ClientConfig.CapsEvery, and 2 s for a read. Increase
	// LowerWait together with CapsEvery.
	LowerWait time.Duration
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// MemberPart is a service's membership, as a service.Part. Make one with [Registry.Member].
type MemberPart struct {
	r   *Registry
	cfg MemberConfig

	process   string // a text that is unique to this start
	announced bool   // set by the Announcement, which starts before this part

	cancel context.CancelFunc
	done   chan struct{}
	failed chan error
	outage outage.Log // for the goroutine that sends heartbeats

	mu   sync.Mutex
	seen time.Time // when the last heartbeat was written, by this process's clock
	err  error     // the error of the last heartbeat
}

// Member returns a part that joins when it is started, sends heartbeats, and leaves when it is stopped. Add it after the parts that do the
// work, so that the member is up only while it can work. A service with Self.Interfaces also adds its [MemberPart.Announcement], before these
// parts. After a failed heartbeat, the next heartbeat follows within a second. The first of several failures in a row and one failure a
// minute are logged as WARN, the others as DEBUG.
func (r *Registry) Member(cfg MemberConfig) *MemberPart {
	if cfg.Every <= 0 {
		cfg.Every = r.cfg.DownAfter / 6
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &MemberPart{r: r, cfg: cfg, process: uuid.NewString(), done: make(chan struct{}), failed: make(chan error, 1)}
}

// Failed implements service.Failer: the part fails with [ErrHeld] when another process has become the
// member while this process could not send heartbeats.
func (p *MemberPart) Failed() <-chan error { return p.failed }

// Start joins, and begins to send heartbeats. Errors: Precondition if a member of the same kind has a version below MinVersion; [ErrHeld] if
// the member belongs to another process.
func (p *MemberPart) Start(ctx context.Context) error {
	if p.cfg.MinVersion > 0 {
		least, err := p.r.MinVersion(ctx, p.cfg.Kind)
		if err != nil {
			return err
		}
		if least > 0 && least < p.cfg.MinVersion {
			return fault.New(fault.Precondition, "start %s: a member of this kind has version %d, but this release needs version %d or later in all members: upgrade that member first, or remove it if its host is lost for good",
				p.cfg.Kind, least, p.cfg.MinVersion)
		}
	}
	if err := p.r.join(ctx, p.cfg.Self, p.process, p.announced); err != nil {
		return err
	}
	p.note(nil)
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	go func() {
		defer close(p.done)
		p.sendHeartbeats(life)
	}()
	return nil
}

// note stores the result of a heartbeat.
func (p *MemberPart) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err = err; err == nil {
		p.seen = time.Now()
	}
}

// sendHeartbeats sends heartbeats until ctx ends or another process has become the member.
func (p *MemberPart) sendHeartbeats(ctx context.Context) {
	timer := time.NewTimer(p.cfg.Every)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		err := p.sendHeartbeat(ctx)
		if errors.Is(err, ErrHeld) {
			p.note(err)
			p.failed <- err
			return
		}
		next := p.cfg.Every
		if ctx.Err() == nil {
			p.outage.Note(ctx, p.cfg.Logger, slog.LevelWarn, "heartbeat", err, false, "member", p.cfg.Kind, "host", p.cfg.Host)
		}
		if err != nil {
			next = min(next, time.Second)
		}
		p.note(err)
		timer.Reset(next)
	}
}

// sendHeartbeat sends one heartbeat. If the member was removed, it joins again.
func (p *MemberPart) sendHeartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(p.cfg.Every, time.Second))
	defer cancel()
	err := p.r.Heartbeat(ctx, p.cfg.Kind, p.cfg.Host, p.cfg.Instance.ID)
	if fault.CodeOf(err) == fault.NotFound && err != nil { // an operator has removed the member
		err = p.r.join(ctx, p.cfg.Self, p.process, p.announced)
	}
	return err
}

// Check returns [ErrHeld] if another process has become the member, and Unavailable if no heartbeat was written for
// DownAfter, so that other processes see the member as down. It does not block.
func (p *MemberPart) Check(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.err, ErrHeld) {
		return p.err
	}
	if p.seen.IsZero() {
		return fault.New(fault.Unavailable, "the member has not joined yet")
	}
	if sinceHeartbeat := time.Since(p.seen); sinceHeartbeat > p.r.cfg.DownAfter {
		return fault.New(fault.Unavailable, "no heartbeat was written for %v: %w", sinceHeartbeat.Round(time.Second), p.err)
	}
	return nil
}

// Stop ends the heartbeats and makes the member leave, as [Registry.Leave] does. It blocks until a heartbeat that is being written has ended,
// and until the database answers. Errors: those of Registry.Leave. If ctx ends first, Stop returns the error of ctx, and the member may not
// have left: other processes see it as down after Config.DownAfter.
func (p *MemberPart) Stop(ctx context.Context) error {
	p.cancel()
	select {
	case <-p.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.r.markDeparted(ctx, p.cfg.Kind, p.cfg.Host, p.cfg.Instance.ID, p.process)
}
