package auth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// KeystoneConfig configures a [Keystone]. URL, Username, Password and ProjectName are
// required.
type KeystoneConfig struct {
	// URL is Keystone's v3 endpoint, such as "https://keystone:5000/v3". Without the /v3 it
	// is the same.
	URL string
	// Username and the rest are the service's own, with a role that may validate
	// tokens, such as service or admin.
	Username, Password, UserDomain string // UserDomain by name; default "Default"
	ProjectName, ProjectDomain     string // ProjectDomain by name; default "Default"
	// ServiceRoles are the roles, one of them, of a service whose token, in the header
	// X-Service-Token, lets a user's token count that has expired meanwhile: what one
	// service began for a user, another one may end. Default "service", as in
	// keystonemiddleware.
	ServiceRoles []string
	// TTL is for how long what Keystone says of a token is believed, so also how long
	// a token may live that was revoked. Default 5 minutes, as in keystonemiddleware;
	// negative: each request asks.
	TTL time.Duration
	// RefusedTTL is the same for tokens that Keystone does not know. Default 10 s.
	RefusedTTL time.Duration
	// MaxCached is how many tokens are remembered. Default 10,000.
	MaxCached int
	// Timeout bounds a question to Keystone. Default 5 s.
	Timeout time.Duration
	// TLS is for an https URL, see package tlsfile. Default: the system's authorities. Not beside
	// Client.
	TLS *tls.Config
	// Client makes the questions. Default: one of its own.
	Client *http.Client
	Logger *slog.Logger
}

// Keystone validates tokens with Keystone's v3 API. It is safe for concurrent use, and a
// part of package service.
type Keystone struct {
	cfg   KeystoneConfig
	url   *url.URL
	asked singleflight.Group // one question for each token at a time

	mu    sync.Mutex
	own   string // the service's token
	cache map[[32]byte]answer
	err   error // of the last question, if Keystone did not answer
}

// answer is what Keystone said of a token.
type answer struct {
	who   reqctx.Request
	ok    bool
	until time.Time
}

// NewKeystone returns a Keystone that has asked nothing yet. Invalid: an option is
// missing, is no URL, or would have no effect.
func NewKeystone(cfg KeystoneConfig) (*Keystone, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fault.New(fault.Invalid, "Keystone's URL is not of the form https://host:5000/v3: %q", cfg.URL)
	}
	switch {
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fault.New(fault.Invalid, "Keystone's URL has parameters, of which it knows none: %q", u.RawQuery+u.Fragment)
	case cfg.TLS != nil && u.Scheme != "https":
		return nil, fault.New(fault.Invalid, "files for TLS are given for Keystone, and its URL begins with http://, not https://")
	case cfg.TLS != nil && cfg.Client != nil:
		return nil, fault.New(fault.Invalid, "Keystone has either a configuration of TLS or a client that has its own")
	}
	for name, v := range map[string]string{"username": cfg.Username, "password": cfg.Password, "project name": cfg.ProjectName} {
		if v == "" {
			return nil, fault.New(fault.Invalid, "Keystone needs the service's %s", name)
		}
	}
	cfg.UserDomain, cfg.ProjectDomain = cmp.Or(cfg.UserDomain, "Default"), cmp.Or(cfg.ProjectDomain, "Default")
	cfg.TTL, cfg.RefusedTTL = cmp.Or(cfg.TTL, 5*time.Minute), cmp.Or(cfg.RefusedTTL, 10*time.Second)
	cfg.MaxCached, cfg.Timeout = cmp.Or(cfg.MaxCached, 10_000), cmp.Or(cfg.Timeout, 5*time.Second)
	if cfg.ServiceRoles == nil {
		cfg.ServiceRoles = []string{"service"}
	}
	if cfg.Client == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
		if cfg.TLS != nil {
			transport.TLSClientConfig = cfg.TLS.Clone()
		}
		cfg.Client = &http.Client{Transport: transport}
	}
	client := *cfg.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // tokens go nowhere else
	cfg.Client = &client
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if path.Base(u.Path) != "v3" {
		u = u.JoinPath("v3")
	}
	return &Keystone{cfg: cfg, url: u, cache: map[[32]byte]answer{}}, nil
}

// Challenge is the value of WWW-Authenticate in replies of 401.
func (k *Keystone) Challenge() string { return fmt.Sprintf("Keystone uri=%q", k.url) }

// serviceHeader is the one that has the token of a service that asks for a user.
const serviceHeader = "X-Service-Token"

// Authenticate returns whom the request's token belongs to, for api.Config. It blocks
// while it asks Keystone, if it does not remember the token. Errors: Unauthenticated if
// there is no token, or Keystone does not know it; Unavailable if Keystone does not
// answer as it should: nobody is let in then whose token is not remembered.
func (k *Keystone) Authenticate(r *http.Request) (reqctx.Request, error) {
	token := r.Header.Get(Header)
	if token == "" {
		return reqctx.Request{}, errWho
	}
	a, err := k.look(r.Context(), token, false)
	if service := r.Header.Get(serviceHeader); err == nil && !a.ok && service != "" {
		var s answer
		s, err = k.look(r.Context(), service, false)
		if err == nil && s.ok && slices.ContainsFunc(s.who.Roles, func(role string) bool { return slices.Contains(k.cfg.ServiceRoles, role) }) {
			a, err = k.look(r.Context(), token, true)
		}
	}
	if err != nil {
		return reqctx.Request{}, err
	}
	if !a.ok {
		return reqctx.Request{}, errWho
	}
	return a.who, nil
}

// look returns what is remembered of a token, or what Keystone says of it. Whether it has
// expired may not count.
func (k *Keystone) look(ctx context.Context, token string, expired bool) (answer, error) {
	sum := sha256.Sum256([]byte(token))
	if expired {
		sum = sha256.Sum256(append(sum[:], "expired"...))
	}
	k.mu.Lock()
	a, known := k.cache[sum]
	k.mu.Unlock()
	if known && time.Now().Before(a.until) {
		return a, nil
	}
	// For all who have the same token; so the context is none of theirs.
	v, err, _ := k.asked.Do(string(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.Timeout)
		defer cancel()
		return k.ask(ctx, sum, token, expired)
	})
	if err != nil {
		return answer{}, err
	}
	return v.(answer), nil //nolint:forcetypeassert // ask returns one
}

// ask asks Keystone whose token it is, and remembers it.
func (k *Keystone) ask(ctx context.Context, sum [32]byte, token string, expired bool) (answer, error) {
	a, err := k.validate(ctx, token, expired)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err != nil {
		k.cfg.Logger.ErrorContext(ctx, "Keystone does not answer", "error", err)
		return a, fault.New(fault.Unavailable, "The identity service cannot be asked now.")
	}
	if a.ok && k.cfg.TTL < 0 {
		return a, nil
	}
	if len(k.cache) >= k.cfg.MaxCached {
		k.shrink()
	}
	k.cache[sum] = a
	return a, nil
}

// shrink forgets what is out of date, or, if that is little, first tokens that are not
// known, of which anybody can send many, and then any.
func (k *Keystone) shrink() {
	now := time.Now()
	for _, drop := range []func(answer) bool{
		func(a answer) bool { return !now.Before(a.until) },
		func(a answer) bool { return !a.ok },
		func(answer) bool { return true },
	} {
		for sum, a := range k.cache {
			if len(k.cache) < k.cfg.MaxCached*9/10 {
				return
			}
			if drop(a) {
				delete(k.cache, sum)
			}
		}
	}
}

// errOwn says that Keystone refuses the service itself.
var errOwn = errors.New("Keystone refuses the service's own user, password or project")

func (k *Keystone) validate(ctx context.Context, token string, expired bool) (answer, error) {
	target := k.url.JoinPath("auth", "tokens").String() + "?nocatalog"
	if expired {
		target += "&allow_expired=1"
	}
	for fresh := false; ; fresh = true {
		own, err := k.ownToken(ctx, fresh)
		if err != nil {
			return answer{}, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
		if err != nil {
			return answer{}, err
		}
		req.Header.Set(Header, own)
		req.Header.Set("X-Subject-Token", token)
		status, _, body, err := k.do(req)
		switch {
		case err != nil:
			return answer{}, err
		case status == http.StatusOK:
			return k.read(body, expired)
		case status == http.StatusNotFound:
			return answer{until: time.Now().Add(k.cfg.RefusedTTL)}, nil
		case status == http.StatusUnauthorized && !fresh: // our own is out of date
		default:
			return answer{}, fmt.Errorf("validate a token: Keystone answers %d", status)
		}
	}
}

// maxReply bounds what is read of Keystone's replies.
const maxReply = 1 << 20

func (k *Keystone) do(req *http.Request) (status int, header http.Header, body []byte, err error) {
	req.Header.Set("Accept", "application/json")
	if id := reqctx.From(req.Context()).ID; id != "" {
		req.Header.Set("X-Openstack-Request-Id", id)
	}
	resp, err := k.cfg.Client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return resp.StatusCode, resp.Header, body, err
}

type named struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// read reads what Keystone says of a token.
func (k *Keystone) read(body []byte, expired bool) (answer, error) {
	var in struct {
		Token struct {
			ExpiresAt time.Time `json:"expires_at"`
			User      named     `json:"user"`
			Project   named     `json:"project"`
			Domain    named     `json:"domain"`
			Roles     []named   `json:"roles"`
			System    struct {
				All bool `json:"all"`
			} `json:"system"`
		} `json:"token"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Token.User.ID == "" || in.Token.ExpiresAt.IsZero() {
		return answer{}, errors.New("validate a token: Keystone's answer is not a token")
	}
	now := time.Now()
	if !expired && !now.Before(in.Token.ExpiresAt) {
		return answer{until: now.Add(k.cfg.RefusedTTL)}, nil
	}
	a := answer{ok: true, until: now.Add(k.cfg.TTL), who: reqctx.Request{UserID: in.Token.User.ID, ProjectID: in.Token.Project.ID, DomainID: in.Token.Domain.ID}}
	if !expired && in.Token.ExpiresAt.Before(a.until) {
		a.until = in.Token.ExpiresAt
	}
	if in.Token.System.All {
		a.who.SystemScope = "all"
	}
	for _, r := range in.Token.Roles {
		a.who.Roles = append(a.who.Roles, r.Name)
	}
	return a, nil
}

// ownToken returns the service's token, a new one if fresh.
func (k *Keystone) ownToken(ctx context.Context, fresh bool) (string, error) {
	k.mu.Lock()
	own := k.own
	k.mu.Unlock()
	if own != "" && !fresh {
		return own, nil
	}
	v, err, _ := k.asked.Do("own", func() (any, error) { return k.login(ctx) })
	if err != nil {
		return "", err
	}
	own = v.(string) //nolint:forcetypeassert // login returns one
	k.mu.Lock()
	defer k.mu.Unlock()
	k.own = own
	return own, nil
}

func (k *Keystone) login(ctx context.Context) (string, error) {
	type object = map[string]any
	domain := func(name string) object { return object{"name": name} }
	raw, err := json.Marshal(object{"auth": object{
		"identity": object{"methods": []string{"password"}, "password": object{"user": object{
			"name": k.cfg.Username, "password": k.cfg.Password, "domain": domain(k.cfg.UserDomain),
		}}},
		"scope": object{"project": object{"name": k.cfg.ProjectName, "domain": domain(k.cfg.ProjectDomain)}},
	}})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url.JoinPath("auth", "tokens").String(), bytes.NewReader(raw))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	status, header, _, err := k.do(req)
	if err != nil {
		return "", err
	}
	token := header.Get("X-Subject-Token")
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return "", errOwn
	case status != http.StatusCreated || token == "":
		return "", fmt.Errorf("log in: Keystone answers %d", status)
	}
	return token, nil
}

// Start does nothing: a service that starts before Keystone waits for it, and says so by
// Check.
func (k *Keystone) Start(context.Context) error { return nil }

// Stop closes idle connections.
func (k *Keystone) Stop(context.Context) error {
	k.cfg.Client.CloseIdleConnections()
	return nil
}

// Check fails with Unavailable if Keystone did not answer when it was last asked, and
// does not answer now either.
func (k *Keystone) Check(ctx context.Context) error {
	k.mu.Lock()
	own, last := k.own, k.err
	k.mu.Unlock()
	if own != "" && last == nil {
		return nil
	}
	_, err := k.ownToken(ctx, true)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err = err; err != nil {
		return fault.New(fault.Unavailable, "Keystone at %s: %w", strings.TrimSuffix(k.url.Redacted(), "/"), err)
	}
	return nil
}
