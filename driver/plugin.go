package driver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
)

// State is the state of a plugin.
type State string

// The states of a plugin.
const (
	NotStarted State = "not started"
	Up         State = "up"
	Restarting State = "restarting" // the program crashed, and is restarted soon
	Broken     State = "broken"     // the program crashed too often, and is restarted after Cooldown
	// Refused means that the program has ended and is not restarted, because its file is missing, does not have the
	// checksum, or could be changed by another user. The file is checked again every MaxDelay.
	Refused State = "refused"
	Closed  State = "closed"
)

// Status describes a plugin.
type Status struct {
	State State
	// PID is the id of the program's process, 0 without a process.
	PID int
	// Protocol is the version of the kind's protocol that the program of the last start has, 0 for a driver in this process.
	Protocol int
	// Since is the time at which State began, or of the last replacement.
	Since time.Time
	// Restarts is the number of restarts.
	Restarts int
	// Replacements is the number of replacements by [Plugin.Replace].
	Replacements int
	// Err is the last reason why the program ended or did not start. Nil: it has neither
	// ended nor failed to start.
	Err error
	// Next is the time of the next start, if the program is down.
	Next time.Time
}

// Plugin is a driver: a program that is supervised and restarted, or a driver in this process. It is a part of package
// service. Make one with [New] or [Registry.New], which start nothing, or with [Launch], which starts it. It is safe for
// concurrent use.
type Plugin[D Driver] struct {
	launch  func(context.Context) (map[int]D, *supervisor, error)
	plan    func(PluginConfig) (*plan, error) // returns the plan of a new configuration; nil: a driver in this process
	client  func(*view) D                     // nil: a driver in this process
	options json.RawMessage                   // the options of a driver in this process
	closed  chan struct{}                     // closed when Close has ended

	starting chan struct{} // has an element while a Start runs

	mu      sync.Mutex
	d       map[int]D // the key is the protocol; a driver in this process has the key 0
	started bool
	sup     *supervisor // nil: a driver in this process, or not started
	since   time.Time
	closing bool
	abort   context.CancelFunc // cancels a running start
	err     error              // the result of Close
}

// New returns a plugin for a driver's program. It starts nothing, and returns every error that can be found without a
// start. An error about the program has its path, and an error about an option has the option's name. New panics if k is
// incomplete. Errors:
//
//   - NotFound: the program does not exist.
//   - Invalid: the program is not an executable file, or a field of cfg is wrong.
//   - Denied: the checksum of the program differs, or another user could replace the program.
func New[D Driver](k Kind[D], cfg PluginConfig) (*Plugin[D], error) {
	k.check()
	pl, err := newPlan(k.Name, cfg)
	if err != nil {
		return nil, err
	}
	protocols := []int{k.Protocol}
	if k.Protocol > 1 {
		protocols = append(protocols, k.Protocol-1)
	}
	p := newPlugin(func(ctx context.Context) (map[int]D, *supervisor, error) {
		sup, err := startSupervised(ctx, k.Name, protocols, pl)
		if err != nil {
			return nil, nil, err
		}
		d := make(map[int]D, len(protocols))
		for _, v := range protocols {
			d[v] = k.Client(sup.link.view(v), v)
		}
		return d, sup, nil
	})
	p.plan = func(cfg PluginConfig) (*plan, error) { return newPlan(k.Name, cfg) }
	p.client = func(v *view) D { return k.Client(v, v.protocol) }
	return p, nil
}

// newPlugin returns a plugin. The function launch starts the driver. For a driver in this process, launch returns no supervisor.
func newPlugin[D Driver](launch func(context.Context) (map[int]D, *supervisor, error)) *Plugin[D] {
	return &Plugin[D]{launch: launch, starting: make(chan struct{}, 1), closed: make(chan struct{}), since: time.Now()}
}

// Launch calls [New] and [Plugin.Start], and returns the errors of both. It is for tools and tests. After an error the plugin
// is nil, and no process is left. A service makes its plugin with New, and its App starts the plugin.
func Launch[D Driver](ctx context.Context, k Kind[D], cfg PluginConfig) (*Plugin[D], error) {
	p, err := New(k, cfg)
	if err != nil {
		return nil, err
	}
	return startNew(ctx, p)
}

// startNew starts a new plugin and returns it.
func startNew[D Driver](ctx context.Context, p *Plugin[D]) (*Plugin[D], error) {
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// Start starts the driver, and returns when the driver is open. From then on, until Close, a program that
// ends or hangs is restarted. The end of ctx cancels the start only. Start on a started driver has no effect.
//
// After an error no process is left, and Start may be called again. Errors:
//
//   - The error of the driver's own open function.
//   - For a program, the errors of [New].
//   - Invalid: the program is not a driver of this kind and protocol.
//   - Timeout: the program does not start within StartTimeout, or before the deadline of ctx.
//   - Precondition: the plugin is closed.
//
// The program never outlives this process, even if this process is killed.
func (p *Plugin[D]) Start(ctx context.Context) error {
	return p.exclusively(ctx, func(ctx context.Context, started bool) error {
		if started {
			return nil
		}
		d, sup, err := p.launch(ctx)
		if err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.d, p.sup, p.started, p.since = d, sup, true, time.Now()
		return nil
	})
}

// exclusively calls f while no other start or replacement runs. Close cancels the context of f.
func (p *Plugin[D]) exclusively(ctx context.Context, f func(ctx context.Context, started bool) error) error {
	select {
	case p.starting <- struct{}{}:
	case <-ctx.Done():
		return fault.New(fault.CodeOf(ctx.Err()), "wait for another start of the driver: %w", ctx.Err())
	}
	defer func() { <-p.starting }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	started, closing := p.started, p.closing
	p.abort = cancel
	p.mu.Unlock()
	if closing {
		return fault.New(fault.Precondition, "the driver is closed")
	}
	return f(ctx, started)
}

// Replace replaces the running program without a restart of this process. The parameter cfg is the new configuration, for the same kind of
// driver. Observe and Logger of cfg are not used. If neither cfg nor the file of the program has changed, Replace does nothing. Without
// a checksum in cfg, the file counts as changed if the path leads to another file, or if its size or modification time differs.
//
// The new program is started and checked: its checksum and owner, its protocol, Open, and Info. It must have all capabilities of
// the running program, if the running program answers. The function check, unless nil, is called with the new driver, and must return nil.
// If a step fails, the running program stays, and the error has the reason. After all steps, new calls go to the new program, and
// Replace returns.
//
//   - If [Info.Concurrent] of the running program is true, both programs run at the same time. Calls that run on the old program
//     may continue for DrainTimeout. Then the streams of the old program are canceled. If it still has running calls, it is killed,
//     so that these calls fail with Unknown. Another Replace waits for the end of the old program.
//   - Otherwise the old program is closed before the new one is opened. New calls wait. Running calls may continue for half of
//     the time until the deadline of ctx, at most for DrainTimeout. If a call runs longer, Replace fails with Timeout, and the old
//     program stays. Streams are canceled after 1 s. If the new program is refused, the old one is started again.
//
// While the program is down, Replace starts the new one at once. Close cancels a running Replace. Errors, besides those of Start:
// Precondition if a capability is missing, if the plugin is not started, or if the driver is in this process and its options have
// changed.
func (p *Plugin[D]) Replace(ctx context.Context, cfg PluginConfig, check func(context.Context, D) error) error {
	return p.exclusively(ctx, func(ctx context.Context, started bool) error {
		switch {
		case !started:
			return fault.New(fault.Precondition, "replace the program of the driver: it is not started")
		case p.plan == nil && bytes.Equal(p.options, cfg.Options):
			return nil
		case p.plan == nil:
			return fault.New(fault.Precondition, "the driver is built in: restart this process for its new options")
		}
		next, err := p.plan(cfg)
		if err != nil {
			return p.sup.notReplaced(err)
		}
		now := p.sup.plan.Load().cfg
		next.cfg.Observe, next.cfg.Logger = now.Observe, now.Logger
		return p.sup.replace(ctx, next, func(ctx context.Context, v *view) error {
			if check == nil {
				return nil
			}
			return check(ctx, p.client(v))
		})
	})
}

// Driver returns the driver, or the zero value of its type before Start. The driver stays the same when its program is
// restarted or replaced, unless the new program has another protocol: then the methods of the earlier driver fail with Unavailable. So
// call Driver for each use. While the program is down, its methods fail with Unavailable at once: nothing was executed. A call during
// which the program ends fails with Unknown: it may have been executed.
func (p *Plugin[D]) Driver() D {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sup != nil {
		return p.d[p.sup.getStatus().Protocol]
	}
	return p.d[0]
}

// Status returns the plugin's status.
func (p *Plugin[D]) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.sup != nil:
		return p.sup.getStatus()
	case p.closing:
		return Status{State: Closed}
	case !p.started:
		return Status{State: NotStarted, Since: p.since}
	}
	return Status{State: Up, Since: p.since}
}

// Check is a readiness check. It returns nil if the driver can be called. Otherwise the error is Unavailable, with the
// reason and the time until the next start. Check does not block.
func (p *Plugin[D]) Check(context.Context) error {
	p.mu.Lock()
	sup := p.sup
	p.mu.Unlock()
	if sup != nil {
		return sup.check()
	}
	if st := p.Status().State; st != Up {
		return fault.New(fault.Unavailable, "the driver is %s", st)
	}
	return nil
}

// Close waits for running calls, cancels streams, closes the driver and ends its program. When ctx ends
// first, the program is killed, and the error says so; a driver in this process is abandoned after another second. The
// objects that the driver manages outside of its process stay as they are. A
// second Close waits for the first and returns the same error. A plugin that was never started cannot be started after
// Close.
func (p *Plugin[D]) Close(ctx context.Context) error {
	p.mu.Lock()
	first := !p.closing
	p.closing = true
	if p.abort != nil {
		p.abort()
	}
	if p.sup != nil && first {
		context.AfterFunc(ctx, p.sup.kill) // even while a replacement waits for the end of a program
	}
	p.mu.Unlock()
	if first {
		go p.closeDriver(ctx)
	}
	select {
	case <-p.closed:
		return p.err
	case <-ctx.Done():
	}
	select {
	case <-p.closed: // a program is killed when ctx ends, and the error says so
		return p.err
	case <-time.After(killTime):
		return fault.New(fault.CodeOf(ctx.Err()), "the driver did not close in time, and still runs in this process: %w", ctx.Err())
	}
}

// killTime is how long Close waits, after its context has ended, for the end of a program that was killed.
const killTime = time.Second

// closeDriver waits for a running start and closes the driver.
func (p *Plugin[D]) closeDriver(ctx context.Context) {
	defer close(p.closed)
	p.starting <- struct{}{}
	defer func() { <-p.starting }()
	p.mu.Lock()
	d, sup, started := p.d, p.sup, p.started
	p.mu.Unlock()
	switch {
	case sup != nil:
		p.err = sup.close(ctx)
	case started:
		p.err = d[0].Close()
	}
}

// Stop calls [Plugin.Close]. With Start and Stop a Plugin is a service.Part.
func (p *Plugin[D]) Stop(ctx context.Context) error { return p.Close(ctx) }

// New returns a plugin for the driver that a configuration names. A registered name is a driver in this process, with cfg.Options. Any other name is a program:
// New sets cfg.Program to the name and calls the function [New]. It starts nothing and opens no driver. If a registered driver has a check, see
// [Registry.AddChecked], New checks the driver's own options. It does not check the options of other drivers. Fields that are for a program, such as SHA256 or
// User, are Invalid for a driver in this process, because they would have no effect.
func (r *Registry[D]) New(k Kind[D], name string, cfg PluginConfig) (*Plugin[D], error) {
	r.mu.RLock()
	builtIn, check := r.open[name] != nil, r.check[name]
	r.mu.RUnlock()
	if builtIn {
		err := cfg.forProgram()
		if err == nil && check != nil {
			err = check(cfg.Options)
		}
		if err != nil {
			return nil, fmt.Errorf("open driver %s: %w", name, err)
		}
		p := newPlugin(func(ctx context.Context) (map[int]D, *supervisor, error) {
			d, err := k.opened(r.Open(ctx, name, cfg.Options))
			return map[int]D{0: d}, nil, err
		})
		p.options = cfg.Options
		return p, nil
	}
	cfg.Program = name
	p, err := New(k, cfg)
	if err != nil && fault.CodeOf(err) == fault.NotFound && !filepath.IsAbs(name) {
		known := r.Names()
		if len(known) > 0 {
			err = fmt.Errorf("%w; built in: %s", err, strings.Join(known, ", "))
		}
		programs, _ := programNames(k.Name, cfg.Dir) // err has the error of a directory that cannot be read
		err = fmt.Errorf("%w%s", err, text.Nearest(name, slices.Values(append(known, programs...))))
	}
	return p, err
}

// Launch calls [Registry.New] and [Plugin.Start], and returns the errors of both, as the function [Launch] does.
func (r *Registry[D]) Launch(ctx context.Context, k Kind[D], name string, cfg PluginConfig) (*Plugin[D], error) {
	p, err := r.New(k, name, cfg)
	if err != nil {
		return nil, err
	}
	return startNew(ctx, p)
}

// Validate returns the error of [Registry.New].
func (r *Registry[D]) Validate(k Kind[D], name string, cfg PluginConfig) error {
	_, err := r.New(k, name, cfg)
	return err
}
