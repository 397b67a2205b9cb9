package component

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
	"github.com/armature-go/armature/service/auth"
	"github.com/armature-go/armature/service/policy"
)

// API adds the REST API of the process. The API is the last part to start. The function register adds the routes; API adds the health routes /livez and
// /readyz. API itself sets these fields of cfg: Enforce and Rules, if the component has Rules; CORS, if the options have origins; Inflight,
// Observe, BodyTimeout and Logger. It sets Authenticate and Challenge only if Authenticate is nil, and PublicURL only if it is empty. The error
// names the wrong options. Return it from Wire.
//
// API panics if it is called twice. It also panics if the options embed neither [APIOptions], nor [AccessOptions] together with a
// [Component.Address].
func (p *Process[O]) API(cfg api.Config, register func(m *api.Mux)) error {
	o := findOptions[AccessOptions](p.Options)
	addr, names := p.c.address(p.Options)
	switch {
	case o == nil || addr == "":
		panic("component: API: the options do not embed component.APIOptions: embed component.APIOptions in the struct of options")
	case p.mux != nil:
		panic("component: API: called twice: a process has one API; add all routes in one register function")
	}
	var errs []error // the error of the address comes first, because it may cause the others
	listener := o.WSGI.Config(addr, nil)
	if err := (service.HTTPConfig{Addr: addr}).Validate(); err != nil {
		errs = append(errs, optionError(strings.Join(names, " "), err))
	} else {
		errs = append(errs, optionError("wsgi.ssl_cert_file wsgi.ssl_key_file wsgi.ssl_ca_file", listener.Validate()))
	}
	errs = append(errs, p.authenticate(o, addr, names, &cfg), p.enforce(&cfg))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if len(o.CORS.Origins) > 0 {
		cfg.CORS = &api.CORS{Origins: o.CORS.Origins}
	}
	if a := findOptions[APIOptions](p.Options); a != nil && cfg.PublicURL == "" {
		cfg.PublicURL = a.Links.PublicURL
	}
	cfg.Inflight, cfg.Observe, cfg.Logger, cfg.BodyTimeout = p.App.Inflight(), p.tell.observe, p.Log, o.WSGI.BodyTimeout
	p.mux = api.New(cfg)
	p.mux.Health(p.App.Ready)
	register(p.mux)
	listener.Handler = p.tell.around(p.mux)
	p.http = service.NewHTTP(listener)
	p.addPart(phaseAPI, "api", p.read.label(names...), p.http)
	return nil
}

// enforce adds the policy to the process, and sets Enforce and Rules of cfg.
func (p *Process[O]) enforce(cfg *api.Config) error {
	if p.c.Rules == nil {
		return nil
	}
	rules, err := policy.New(p.c.Rules, p.read.policy(p.Log))
	if err != nil {
		return optionError("oslo_policy.policy_file oslo_policy.policy_dirs", err)
	}
	p.addPart(phaseAPI, "policy", "", rules)
	p.addPart(phaseAPI, "policy files", "", service.Loop(policyInterval, rules.Watch))
	cfg.Enforce = rules.Enforce
	for _, r := range p.c.Rules {
		cfg.Rules = append(cfg.Rules, r.Name)
	}
	return nil
}

// policyInterval is the time between two checks whether the files of rules have changed.
const policyInterval = 10 * time.Second

// authenticate sets how clients are authenticated. The parameter addr is the address of the API, and names are the options that set
// the address.
func (p *Process[O]) authenticate(o *AccessOptions, addr string, names []string, cfg *api.Config) error {
	if cfg.Authenticate != nil {
		return nil
	}
	if err := o.checkOpen(addr); err != nil {
		return optionError(strings.Join(slices.Concat([]string{"api.auth_strategy"}, names, []string{"api.noauth2_remote"}), " "), err)
	}
	if p.read.wrong["api.auth_strategy"] { // the value was replaced by the default, whose errors would hide the error of the value
		cfg.Authenticate = func(*http.Request) (reqctx.Request, error) {
			return reqctx.Request{}, fault.New(fault.Unauthenticated, "auth_strategy is wrong")
		}
		return nil
	}
	who, err := newIdentity(o, p.Log, p.tell.tokens.Observe)
	if err != nil {
		return err
	}
	cfg.Authenticate, cfg.Challenge = who.authenticate, who.challenge
	if o.API.AuthStrategy == "noauth2" {
		p.Log.Warn("clients not authenticated, every client is the administrator (option auth_strategy of [api] is noauth2)", "listen", addr)
	}
	if who.part == nil {
		return nil
	}
	p.addPart(phaseAPI, "identity", p.read.label("keystone_authtoken.auth_url"), who.part)
	p.probes = append(p.probes, probe{"keystone_authtoken.auth_url", func(ctx context.Context) error {
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

// newIdentity returns the authentication that the options select. The function observe may be nil. The error names each option that is missing or wrong.
func newIdentity(o *AccessOptions, log *slog.Logger, observe func(context.Context, auth.Observation)) (*identity, error) {
	switch o.API.AuthStrategy {
	case "noauth2":
		return &identity{authenticate: auth.None(administrator)}, nil
	case "token":
		return &identity{authenticate: auth.Static(map[string]reqctx.Request{o.API.Token: administrator})}, nil
	}
	var errs []error
	for _, one := range []struct{ option, value string }{
		{"auth_url", o.Auth.AuthURL}, {"username", o.Auth.Username}, {"password", o.Auth.Password}, {"project_name", o.Auth.Project},
	} {
		if one.value == "" {
			errs = append(errs, optionError("keystone_authtoken."+one.option,
				errors.New("is not set, and auth_strategy = keystone of [api] needs it; for a test without users set auth_strategy = noauth2")))
		}
	}
	cfg, err := o.Auth.Config()
	if errs = append(errs, optionError("keystone_authtoken.cafile keystone_authtoken.certfile keystone_authtoken.keyfile keystone_authtoken.ssl_server_name", err)); errors.Join(errs...) != nil {
		return nil, errors.Join(errs...)
	}
	cfg.Logger, cfg.Observe = log, observe
	k, err := auth.NewKeystone(cfg)
	if err != nil {
		return nil, optionError("keystone_authtoken.auth_url", err)
	}
	return &identity{k.Authenticate, k.Challenge(), k}, nil
}

// policy returns the configuration of the rules.
func (l *loadedOptions[O]) policy(log *slog.Logger) policy.Config {
	dir := ""
	if files := l.config.Files(); len(files) > 0 {
		dir = filepath.Dir(files[0])
	}
	o := findOptions[AccessOptions](l.opts)
	if o == nil {
		return policy.Config{Logger: log}
	}
	cfg := o.Policy.Config(dir, func(option string) bool { return l.isSet("oslo_policy", option) })
	cfg.Logger = log
	return cfg
}

// Authenticated reports whether the API asks its clients for an identity. Use it to choose the text that
// explains how to call the API.
func (o *AccessOptions) Authenticated() bool { return o.API.AuthStrategy != "noauth2" }

// Scheme returns the scheme of the API's URLs: http or https.
func (o *AccessOptions) Scheme() string {
	if o.WSGI.CertFile != "" {
		return "https"
	}
	return "http"
}
