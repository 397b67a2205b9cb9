package component

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/policy"
)

// API adds the REST API of the process, which is started last. register adds the routes. The process sets Authenticate and Challenge, unless
// cfg has them, and Enforce, Inflight, Observe, CORS, PublicURL, BodyTimeout and Logger. The health routes /livez and /readyz exist. The error
// names the wrong option; Wire returns it.
//
// API panics if the options do not embed [APIOptions], or if it is called twice.
func (p *Process[O]) API(cfg api.Config, register func(m *api.Mux)) error {
	o := embedded[APIOptions](p.Options)
	switch {
	case o == nil:
		panic("component: API: the options do not embed component.APIOptions: write component.APIOptions as a field without a name in them")
	case p.mux != nil:
		panic("component: API: a process has one API: give all routes to one register")
	}
	if err := p.authenticate(o, &cfg); err != nil {
		return err
	}
	if p.c.Rules != nil {
		rules, err := policy.New(p.c.Rules, p.read.policy(p.Log))
		if err != nil {
			return optionError("oslo_policy.policy_file", err)
		}
		p.addPart(phaseAPI, "policy", "", rules)
		p.addPart(phaseAPI, "policy files", "", service.Loop(policyInterval, rules.Watch))
		cfg.Enforce = rules.Enforce
	}
	if len(o.CORS.Origins) > 0 {
		cfg.CORS = &api.CORS{Origins: o.CORS.Origins}
	}
	cfg.Inflight, cfg.Observe, cfg.Logger = p.App.Inflight(), p.tell.observe, p.Log
	cfg.PublicURL, cfg.BodyTimeout = o.API.PublicURL, o.WSGI.BodyTimeout
	p.mux = api.New(cfg)
	p.mux.Health(p.App.Ready)
	register(p.mux)
	listener := o.WSGI.Config(o.Listen, p.tell.around(p.mux))
	if err := listener.Validate(); err != nil {
		return optionError("wsgi.ssl_cert_file", err)
	}
	p.http = service.NewHTTP(listener)
	p.addPart(phaseAPI, "api", p.read.label("DEFAULT", "listen"), p.http)
	return nil
}

// policyInterval is the time between two checks whether the files of rules have changed.
const policyInterval = 10 * time.Second

// authenticate sets how clients are authenticated.
func (p *Process[O]) authenticate(o *APIOptions, cfg *api.Config) error {
	if cfg.Authenticate != nil {
		return nil
	}
	who, err := newIdentity(o, p.Log, p.tell.tokens.Observe)
	if err != nil {
		return err
	}
	cfg.Authenticate, cfg.Challenge = who.authenticate, who.challenge
	if who.part == nil {
		return nil
	}
	p.addPart(phaseAPI, "identity", p.read.label("keystone_authtoken", "auth_url"), who.part)
	p.probes = append(p.probes, probe{"keystone_authtoken", "auth_url", func(ctx context.Context) error {
		return errors.Join(who.part.Check(ctx), who.part.Stop(ctx))
	}})
	return nil
}

// administrator is the identity of each client that is not authenticated by an identity service.
var administrator = reqctx.Request{UserID: "admin", ProjectID: "admin", Roles: []string{"admin", "manager", "member", "reader"}}

// identity is the way in which clients are authenticated.
type identity struct {
	authenticate func(*http.Request) (reqctx.Request, error)
	challenge    string // for clients without an identity
	part         *auth.Keystone
}

// newIdentity returns the way in which the options say that clients are authenticated. observe may be nil.
func newIdentity(o *APIOptions, log *slog.Logger, observe func(context.Context, auth.Observation)) (*identity, error) {
	switch o.API.AuthStrategy {
	case "noauth2":
		log.Warn("clients not authenticated, every client is the administrator (option auth_strategy of [api] is noauth2)", "listen", o.Listen)
		return &identity{authenticate: auth.None(administrator)}, nil
	case "token":
		return &identity{authenticate: auth.Static(map[string]reqctx.Request{o.API.Token: administrator})}, nil
	}
	cfg, err := o.Auth.Config()
	if err != nil {
		return nil, optionError("keystone_authtoken.cafile", err)
	}
	cfg.Logger, cfg.Observe = log, observe
	k, err := auth.NewKeystone(cfg)
	if err != nil {
		return nil, optionError("api.auth_strategy", errors.Join(errors.New("is keystone, which needs [keystone_authtoken]; for a test without users set auth_strategy = noauth2 in [api]"), err))
	}
	return &identity{k.Authenticate, k.Challenge(), k}, nil
}

// policy returns the configuration of the rules.
func (l *loadedOptions[O]) policy(log *slog.Logger) policy.Config {
	dir := ""
	if files := l.config.Files(); len(files) > 0 {
		dir = filepath.Dir(files[0])
	}
	o := embedded[APIOptions](l.opts)
	if o == nil {
		return policy.Config{Logger: log}
	}
	cfg := o.Policy.Config(dir, func(option string) bool { return l.config.Where("oslo_policy", option) != "default" })
	cfg.Logger = log
	return cfg
}

// Authenticated reports whether the API asks its clients for an identity. It is for texts about how to use it.
func (o *APIOptions) Authenticated() bool { return o.API.AuthStrategy != "noauth2" }

// Scheme is the scheme of the API's URLs: http or https.
func (o *APIOptions) Scheme() string {
	if o.WSGI.CertFile != "" {
		return "https"
	}
	return "http"
}
