package component

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// Processes of one component call each other through two interfaces. No members announce the versions of these interfaces, so clients
// use only methods of version 1.0. A release with a later version must first announce it.
var (
	v1 = rpc.Version{Major: 1}

	// operationInterface is served by processes with a runner.
	operationInterface = &rpc.Interface{Name: "armature-operation", Version: v1}
	notifyOperation    = rpc.Define(rpc.Method[operationMessage, rpc.None]{Interface: operationInterface, Name: "notify", Since: v1})

	// memberInterface is served by processes with a database, for processes without one.
	memberInterface = &rpc.Interface{Name: "armature-member", Version: v1}
	announceMember  = rpc.Define(rpc.Method[memberMessage, announceReply]{Interface: memberInterface, Name: "announce", Since: v1})
	joinMember      = rpc.Define(rpc.Method[memberMessage, rpc.None]{Interface: memberInterface, Name: "join", Since: v1})
	reportMember    = rpc.Define(rpc.Method[memberMessage, rpc.None]{Interface: memberInterface, Name: "heartbeat", Since: v1})
	leaveMember     = rpc.Define(rpc.Method[memberMessage, rpc.None]{Interface: memberInterface, Name: "leave", Since: v1})
	memberCaps      = rpccaps.Define(memberInterface)
	reportResources = rpc.Define(rpc.Method[resourcesMessage, rpc.None]{Interface: memberInterface, Name: "resources", Since: v1})
)

// operationMessage names an operation.
type operationMessage struct {
	ID string `json:"id"`
}

// memberMessage describes a member of a process without a database.
type memberMessage struct {
	Kind       string              `json:"kind"`
	Host       string              `json:"host"`
	Version    int                 `json:"version,omitempty"`
	Interfaces map[string][]string `json:"interfaces,omitempty"`
}

// announceReply says how long the process must wait before it serves, see membership.Registry.ServeDelay.
type announceReply struct {
	Delay time.Duration `json:"delay_ns"`
}

func (m *memberMessage) self() membership.Self {
	return membership.Self{Kind: m.Kind, Host: m.Host, Version: m.Version, Interfaces: m.Interfaces}
}

// addInternal adds the servers of the interfaces that processes use among themselves, where another process may need them.
func (p *Process[O]) addInternal() {
	if p.runner != nil && len(p.c.Services) > 1 && !p.c.OwnNotify {
		p.addPart(phaseServe, "operation rpc", "", p.newServer(operationInterface, rpc.Any, func(s *rpc.Server) {
			rpc.Handle(s, notifyOperation, func(_ context.Context, m *operationMessage) (*rpc.None, error) {
				p.runner.Notify(m.ID)
				return nil, nil
			})
		}))
	}
	if p.Members == nil || !p.c.reportsMembers() {
		return
	}
	caps := rpccaps.New(rpccaps.Config{Members: p.Members, Unreported: p.c.Unreported, Logger: p.Log})
	p.addPart(phaseServe, "member rpc", "", p.newServer(memberInterface, rpc.Any, func(s *rpc.Server) {
		handle := func(m rpc.Method[memberMessage, rpc.None], f func(context.Context, *memberMessage) error) {
			rpc.Handle(s, m, func(ctx context.Context, in *memberMessage) (*rpc.None, error) { return nil, f(ctx, in) })
		}
		rpc.Handle(s, announceMember, func(ctx context.Context, m *memberMessage) (*announceReply, error) {
			if err := p.Members.Announce(ctx, m.self()); err != nil {
				return nil, err
			}
			delay, err := p.Members.ServeDelay(ctx, m.Kind, m.Host, 0)
			return &announceReply{delay}, err
		})
		handle(joinMember, func(ctx context.Context, m *memberMessage) error { return p.Members.Join(ctx, m.self()) })
		handle(reportMember, func(ctx context.Context, m *memberMessage) error { return p.Members.Heartbeat(ctx, m.Kind, m.Host, "") })
		handle(leaveMember, func(ctx context.Context, m *memberMessage) error { return p.Members.Leave(ctx, m.Kind, m.Host, "") })
		rpc.Handle(s, reportResources, func(ctx context.Context, m *resourcesMessage) (*rpc.None, error) {
			if m.Provider == nil {
				return nil, fault.New(fault.Invalid, "the message has no provider")
			}
			return nil, p.putResources(ctx, m.Kind, m.Provider)
		})
		rpc.Handle(s, memberCaps, caps.Answer)
	}))
}

// reportsMembers reports whether processes with the database must report the members of some service. This is so for a service
// without a database and without AutoCaps.
func (c *Component[O]) reportsMembers() bool {
	for _, s := range c.Services {
		if s.NoDatabase && s.AutoCaps == nil {
			return true
		}
	}
	return false
}

// remoteMember is a member of a process without a database. A process with the database writes the member to the registry.
type remoteMember struct {
	client *rpc.Client
	self   memberMessage
	log    *slog.Logger
	loop   *service.LoopPart
}

// remoteTimeout is how long a process with the database may take to write a member.
const remoteTimeout = 10 * time.Second

func newRemoteMember[O any](p *Process[O], self membership.Self) *remoteMember {
	m := &remoteMember{client: p.Client, log: p.Log, self: memberMessage{Kind: self.Kind, Host: self.Host, Version: self.Version, Interfaces: self.Interfaces}}
	m.loop = service.Loop(min(time.Second, p.base.ReportInterval), p.Heartbeat(self.Kind, m.report))
	return m
}

func (m *remoteMember) call(ctx context.Context, method rpc.Method[memberMessage, rpc.None]) error {
	_, err := callProcess(ctx, m, method)
	return err
}

// callProcess calls a process with the database. Unavailable: no process has answered.
func callProcess[Resp any](ctx context.Context, m *remoteMember, method rpc.Method[memberMessage, Resp]) (*Resp, error) {
	limited, cancel := context.WithTimeout(ctx, remoteTimeout)
	defer cancel()
	out, err := rpc.Call(limited, m.client, method, rpc.Any, &m.self)
	return out, translateUnanswered(ctx, err)
}

// translateUnanswered translates the error of a call to a process with the database. If no process has answered, the result is Unavailable,
// after which the call may be repeated. So the called method must be idempotent.
func translateUnanswered(ctx context.Context, err error) error {
	if err != nil && ctx.Err() == nil && slices.Contains([]fault.Code{fault.Timeout, fault.Unknown, fault.Unavailable}, fault.CodeOf(err)) {
		err = fault.New(fault.Unavailable, "no process with the database has answered: %w", err)
	}
	return err
}

// Announcement returns the part that announces the versions of the member, and waits until all clients know them.
func (m *remoteMember) Announcement() service.Part {
	return service.Funcs{OnStart: func(ctx context.Context) error {
		out, err := callProcess(ctx, m, announceMember)
		if err != nil || out.Delay <= 0 {
			return err
		}
		m.log.WarnContext(ctx, "this process is older than others, waits until their clients know its versions", "member", m.self.Kind, "delay", out.Delay)
		timer := time.NewTimer(out.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
}

// Start makes the member join, and starts its heartbeats. Unavailable: no process with the database answers.
func (m *remoteMember) Start(ctx context.Context) error {
	if err := m.call(ctx, joinMember); err != nil {
		return err
	}
	return m.loop.Start(ctx)
}

// report sends a heartbeat, and joins again if an operator has removed the member.
func (m *remoteMember) report(ctx context.Context) error {
	err := m.call(ctx, reportMember)
	if isRemoved(err) {
		err = m.call(ctx, joinMember)
	}
	return err
}

// Stop ends the heartbeats, and makes the member leave. A failure to leave is only logged, because the member then counts as down
// after service_down_time.
func (m *remoteMember) Stop(ctx context.Context) error {
	err := m.loop.Stop(ctx)
	if left := m.call(ctx, leaveMember); left != nil {
		m.log.WarnContext(ctx, "member not left, will be down after the heartbeat timeout", "member", m.self.Kind, "error", left)
	}
	return err
}

// isRemoved reports whether err says that the member does not exist.
func isRemoved(err error) bool { return errors.Is(err, fault.NotFound) }
