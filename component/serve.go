package component

import (
	"cmp"
	"context"
	"slices"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// Serve serves an RPC interface on this host. The function register adds the handlers to the server. The process announces the
// versions of the server before it serves. While it serves, it has a member whose kind is the name of the interface, so that other
// processes find the host and its versions. The interceptors in the parameter around run around each handler, inside the interceptors
// of the process.
func (p *Process[O]) Serve(i *rpc.Interface, register func(s *rpc.Server), around ...rpc.Interceptor) {
	p.ServeWith(ServerConfig{Interface: i, Register: register, Around: around})
}

// ServerConfig configures [Process.ServeWith]. Interface and Register are required.
type ServerConfig struct {
	// Interface, Register and Around are those of [Process.Serve].
	Interface *rpc.Interface
	Register  func(s *rpc.Server)
	Around    []rpc.Interceptor
	// Kind is the kind of the member. Default: the name of the interface. Version is that of the member, see membership.Self.
	Kind    string
	Version int
	// Claim is a part that is started right before the server, and announces the versions of the server. Set it if the component reports the
	// members through an RPC interface of its own. The process then adds no member. Nil: the process adds a member of Kind. Options
	// are the options (NAME or SECTION.NAME) that an error of the start of Claim names. Default: host.
	Claim   service.Part
	Options []string
}

// ServeWith is [Process.Serve] with more settings.
func (p *Process[O]) ServeWith(cfg ServerConfig) {
	kind, label := cmp.Or(cfg.Kind, cfg.Interface.Name), p.read.label("host")
	srv := p.newServer(cfg.Interface, p.Host, cfg.Register, cfg.Around...)
	if cfg.Claim != nil {
		if len(cfg.Options) > 0 {
			label = p.read.label(cfg.Options...)
		}
		p.addPart(phaseServe, p.named(kind+" host"), label, cfg.Claim)
	} else if member := p.newMember(membership.Self{Kind: kind, Host: p.Host, Version: cfg.Version, Interfaces: rpccaps.Of(srv)}); member != nil {
		p.addPart(phaseAnnounce, p.named(kind+" versions"), label, member.Announcement())
		p.addPart(phaseMember, p.named(kind+" member"), label, member)
	}
	p.addPart(phaseServe, p.named(cfg.Interface.Name+" rpc"), label, srv)
}

// newServer returns an RPC server. The caller adds it to the parts of the process.
func (p *Process[O]) newServer(i *rpc.Interface, host string, register func(s *rpc.Server), around ...rpc.Interceptor) *rpc.Server {
	interceptors := slices.Concat(p.tell.server(), []rpc.Interceptor{p.track}, around)
	srv := rpc.NewServer(p.Bus, rpc.ServerConfig{Interface: i, Host: host, Interceptors: interceptors, Logger: p.Log})
	register(srv)
	p.tell.rpc.AddServer(srv)
	return srv
}

// track is an interceptor that adds each running handler to the list of running work.
func (p *Process[O]) track(ctx context.Context, info rpc.Info, req any, next func(context.Context, any) (any, error)) (any, error) {
	defer p.App.Inflight().Begin(ctx, service.Work{Kind: "rpc", Name: info.Interface + "." + info.Method})()
	return next(ctx, req)
}

// memberPart is a member with its announcement.
type memberPart interface {
	service.Part
	Announcement() service.Part
}

// newMember returns the member of a server. The result is nil if the component has no database, and so no members.
func (p *Process[O]) newMember(self membership.Self) memberPart {
	switch {
	case p.Members != nil:
		return p.Members.Member(membership.MemberConfig{Self: self, Every: p.base.ReportInterval, Logger: p.Log})
	case p.c.Migrations != nil:
		return newRemoteMember(p, self)
	}
	return nil
}
