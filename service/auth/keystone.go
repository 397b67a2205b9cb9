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
	"github.com/armature-go/armature/internal/outage"
	"github.com/armature-go/armature/internal/urlcheck"
	"github.com/armature-go/armature/reqctx"
)

// KeystoneConfig configures a [Keystone]. URL, Username, Password and ProjectName are
// required.
type KeystoneConfig struct {
	// URL is Keystone's v3 endpoint, such as "https://keystone:5000/v3". The /v3 at the end is
	// optional.
	URL string
	// Username, Password and the project are the service's own login. The user needs a role that
	// may validate tokens, such as service or admin.
	Username, Password, UserDomain string // UserDomain is a name; default "Default"
	ProjectName, ProjectDomain     string // ProjectDomain is a name; default "Default"
	// ServiceRoles are roles of other services. A request with a user token that has expired is accepted
	// if its header X-Service-Token has the valid token of a user with one of these roles. So a
	// service can finish what another service started for the user. Default (nil) "service", as in
	// keystonemiddleware. Empty, but not nil: no expired token is accepted.
	ServiceRoles []string
	// TTL is how long Keystone's answer for a valid token is cached, at most until the token
	// expires. Within this time a revoked token is still accepted. Default 5 minutes, as in
	// keystonemiddleware. Negative: valid tokens are not cached.
	TTL time.Duration
	// RefusedTTL is how long a token is cached as unknown: Keystone does not know the token, or the token has expired.
	// Default 10 s. Negative: Keystone is asked each time.
	RefusedTTL time.Duration
	// MaxCached is how many tokens the cache holds. From a full cache, unknown tokens are removed
	// before valid ones. Default 10,000.
	MaxCached int
	// Timeout is the timeout of the validation of one token, with a new login if necessary. Default 5 s.
	Timeout time.Duration
	// TLS is the configuration for an https URL, see package tlsfile. It is copied. Default: the system's
	// authorities. Set either TLS or Client, not both.
	TLS *tls.Config
	// Client sends the requests. It is copied, and the copy does not follow redirects, so that
	// tokens go to Keystone only. Stop closes the idle connections of its transport. Default: a client with a transport
	// of its own.
	Client *http.Client
	// Logger gets an ERROR for the first validation that fails because of Keystone, and one per minute while
	// validations fail. It gets a DEBUG for each other failure, and an INFO when validations work again.
	// Default [slog.Default].
	Logger *slog.Logger
	// Observe is called for each validation of a token, from the cache or by Keystone. Requests that wait for the same validation count as
	// one validation. Observe must not block. Package authprom has such a function for Prometheus. Default: validations are not observed.
	Observe func(ctx context.Context, o Observation)
}

// Observation describes the validation of a token for KeystoneConfig.Observe.
type Observation struct {
	// Cached reports that Keystone was not asked.
	Cached bool
	// Valid reports that the token is valid. It is false if Err is not nil.
	Valid bool
	// Duration is the duration of Keystone's answer, with a new login if that was necessary; 0 if Cached.
	Duration time.Duration
	// Err is not nil if Keystone has given no answer about the token, for example because Keystone rejects the service's login.
	Err error
}

// Keystone validates tokens with Keystone's v3 API and caches the answers. It renews the service's own token
// when Keystone does not accept that token any more. A Keystone is safe for concurrent use, and is a
// Part and a Checker of package service.
type Keystone struct {
	cfg   KeystoneConfig
	url   *url.URL
	calls singleflight.Group // one call for each token at a time

	mu       sync.Mutex
	ownToken string // the service's token; empty before the first login
	cache    map[[32]byte]validation
	lastErr  error      // the error of the last call to Keystone; nil if the call succeeded
	outage   outage.Log // logs validations that fail because of Keystone
}

// validation is Keystone's answer for a token.
type validation struct {
	identity reqctx.Request
	valid    bool
	until    time.Time // after this time the cached answer is not used
}

// parseURL returns Keystone's URL, with /v3 at its end. It fails with Invalid if the URL is malformed or has parameters, or if TLS is set
// together with an http URL or with Client.
func (cfg *KeystoneConfig) parseURL() (*url.URL, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fault.New(fault.Invalid, "Keystone's URL %q does not have the form https://host:5000/v3", cfg.URL)
	case urlcheck.CheckText(cfg.URL) != nil:
		return nil, fault.New(fault.Invalid, "Keystone's URL: %w", urlcheck.CheckText(cfg.URL))
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fault.New(fault.Invalid, "Keystone's URL has the parameters %q: remove them, they have no effect", u.RawQuery+u.Fragment)
	case cfg.TLS != nil && u.Scheme != "https":
		return nil, fault.New(fault.Invalid, "TLS is set, but Keystone's URL begins with http://: use https://, or do not configure TLS")
	case cfg.TLS != nil && cfg.Client != nil:
		return nil, fault.New(fault.Invalid, "TLS and Client are set for Keystone: set one of them")
	}
	if path.Base(u.Path) != "v3" {
		u = u.JoinPath("v3")
	}
	return u, nil
}

// NewKeystone returns a Keystone. It sends no request. It fails with Invalid if a required field is empty,
// the URL is malformed, or a field has no effect, such as TLS with an http URL.
func NewKeystone(cfg KeystoneConfig) (*Keystone, error) {
	u, err := cfg.parseURL()
	if err != nil {
		return nil, err
	}
	for name, v := range map[string]string{"username": cfg.Username, "password": cfg.Password, "project name": cfg.ProjectName} {
		if v == "" {
			return nil, fault.New(fault.Invalid, "Keystone's %s for the service is empty", name)
		}
	}
	cfg.UserDomain, cfg.ProjectDomain = cmp.Or(cfg.UserDomain, "Default"), cmp.Or(cfg.ProjectDomain, "Default")
	cfg.TTL, cfg.RefusedTTL = cmp.Or(cfg.TTL, 5*time.Minute), cmp.Or(cfg.RefusedTTL, 10*time.Second)
	cfg.MaxCached, cfg.Timeout = cmp.Or(cfg.MaxCached, 10_000), cmp.Or(cfg.Timeout, 5*time.Second)
	if cfg.ServiceRoles == nil {
		cfg.ServiceRoles = []string{"service"}
	}
	if cfg.Client == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http defines it as *http.Transport
		if cfg.TLS != nil {
			transport.TLSClientConfig = cfg.TLS.Clone()
		}
		cfg.Client = &http.Client{Transport: transport}
	}
	client := *cfg.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a redirect would send tokens to another server
	cfg.Client = &client
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Observe == nil {
		cfg.Observe = func(context.Context, Observation) {}
	}
	return &Keystone{cfg: cfg, url: u, cache: map[[32]byte]validation{}}, nil
}

// Challenge returns the value of the header WWW-Authenticate for replies with status 401. It names
// Keystone's URL.
func (k *Keystone) Challenge() string { return fmt.Sprintf("Keystone uri=%q", k.url) }

// serviceHeader is the name of the HTTP header with the token of a service that acts for a user.
const serviceHeader = "X-Service-Token"

// Authenticate returns the identity that the request's token, in [Header], belongs to. It is for
// api.Config. If the token is not cached, Authenticate blocks until Keystone answers, at most Timeout, or three times Timeout
// for a request with an X-Service-Token. The end of the request's context does not end the wait, because requests with the
// same token share one call to Keystone. Errors:
//
//   - Unauthenticated: the request has no token, Keystone does not know the token, or the token has expired and is
//     not accepted, see [KeystoneConfig].ServiceRoles.
//   - Unavailable: Keystone does not answer, answers with an error, or rejects the service's own login. In this case
//     only cached tokens are accepted. The reason is in the log, not in the error.
func (k *Keystone) Authenticate(r *http.Request) (reqctx.Request, error) {
	token := r.Header.Get(Header)
	if token == "" {
		return reqctx.Request{}, errUnauthenticated
	}
	v, err := k.findToken(r.Context(), token, false)
	if service := r.Header.Get(serviceHeader); err == nil && !v.valid && service != "" {
		var s validation
		s, err = k.findToken(r.Context(), service, false)
		if err == nil && s.valid && slices.ContainsFunc(s.identity.Roles, func(role string) bool { return slices.Contains(k.cfg.ServiceRoles, role) }) {
			v, err = k.findToken(r.Context(), token, true)
		}
	}
	if err != nil {
		return reqctx.Request{}, err
	}
	if !v.valid {
		return reqctx.Request{}, errUnauthenticated
	}
	return v.identity, nil
}

// findToken returns the validation of a token from the cache or from Keystone. If allowExpired is set, an
// expired token is valid, and the validation has a cache entry of its own.
func (k *Keystone) findToken(ctx context.Context, token string, allowExpired bool) (validation, error) {
	sum := sha256.Sum256([]byte(token))
	if allowExpired {
		sum = sha256.Sum256(append(sum[:], "expired"...))
	}
	k.mu.Lock()
	v, cached := k.cache[sum]
	k.mu.Unlock()
	if cached && time.Now().Before(v.until) {
		k.cfg.Observe(ctx, Observation{Cached: true, Valid: v.valid})
		return v, nil
	}
	// Other requests with this token share the call, so the call does not end with the context of this request.
	found, err, _ := k.calls.Do(string(sum[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), k.cfg.Timeout)
		defer cancel()
		begin := time.Now()
		v, err := k.cacheToken(ctx, sum, token, allowExpired)
		k.cfg.Observe(ctx, Observation{Valid: v.valid && err == nil, Duration: time.Since(begin), Err: err})
		return v, err
	})
	if err != nil {
		return validation{}, err
	}
	return found.(validation), nil //nolint:forcetypeassert // cacheToken returns a validation
}

// cacheToken asks Keystone for the validation of a token and puts it into the cache under sum.
func (k *Keystone) cacheToken(ctx context.Context, sum [32]byte, token string, allowExpired bool) (validation, error) {
	v, err := k.validateToken(ctx, token, allowExpired)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastErr = err
	k.outage.Note(ctx, k.cfg.Logger, slog.LevelError, "token validation", err, false)
	if err != nil {
		return v, fault.New(fault.Unavailable, "The identity service is not available now.")
	}
	if v.valid && k.cfg.TTL < 0 {
		return v, nil
	}
	if len(k.cache) >= k.cfg.MaxCached {
		k.evictLocked()
	}
	k.cache[sum] = v
	return v, nil
}

// evictLocked removes tokens until the cache is nine tenths full: first expired answers, then unknown
// tokens, then any. It removes unknown tokens before valid ones because a client can send any number of unknown tokens.
func (k *Keystone) evictLocked() {
	now := time.Now()
	for _, evict := range []func(validation) bool{
		func(v validation) bool { return !now.Before(v.until) },
		func(v validation) bool { return !v.valid },
		func(validation) bool { return true },
	} {
		for sum, v := range k.cache {
			if len(k.cache) < k.cfg.MaxCached*9/10 {
				return
			}
			if evict(v) {
				delete(k.cache, sum)
			}
		}
	}
}

// errServiceRejected means that Keystone rejects the login of this service. It is not about a client's token.
var errServiceRejected = errors.New("log in: Keystone rejects the service's own user, password or project")

// validateToken asks Keystone to which identity a token belongs. If Keystone does not accept the
// service's own token, validateToken logs in and asks once more.
func (k *Keystone) validateToken(ctx context.Context, token string, allowExpired bool) (validation, error) {
	target := k.url.JoinPath("auth", "tokens").String() + "?nocatalog"
	if allowExpired {
		target += "&allow_expired=1"
	}
	for renew := false; ; renew = true {
		own, err := k.serviceToken(ctx, renew)
		if err != nil {
			return validation{}, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
		if err != nil {
			return validation{}, err
		}
		req.Header.Set(Header, own)
		req.Header.Set("X-Subject-Token", token)
		status, _, body, err := k.sendRequest(req)
		switch {
		case err != nil:
			return validation{}, err
		case status == http.StatusOK:
			return k.parseToken(body, allowExpired)
		case status == http.StatusNotFound:
			return validation{until: time.Now().Add(k.cfg.RefusedTTL)}, nil
		case status == http.StatusUnauthorized && !renew: // the service's own token has expired
		default:
			return validation{}, fmt.Errorf("validate a token: Keystone answers with status %d", status)
		}
	}
}

// maxReply bounds how much of Keystone's reply is read, in bytes.
const maxReply = 1 << 20

// sendRequest sends a request to Keystone and returns the reply, with at most maxReply of its body. The
// request has the caller's request id, so that Keystone logs the id.
func (k *Keystone) sendRequest(req *http.Request) (status int, header http.Header, body []byte, err error) {
	req.Header.Set("Accept", "application/json")
	if id := reqctx.From(req.Context()).ID; id != "" {
		req.Header.Set("X-Openstack-Request-Id", id)
	}
	resp, err := k.cfg.Client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // the body is only read
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxReply))
	return resp.StatusCode, resp.Header, body, err
}

// named is an object in Keystone's replies.
type named struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// parseToken reads Keystone's description of a token. An expired token is not valid, unless
// allowExpired is set.
func (k *Keystone) parseToken(body []byte, allowExpired bool) (validation, error) {
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
		return validation{}, errors.New("validate a token: Keystone's reply does not describe a token: check that the URL is Keystone's")
	}
	now := time.Now()
	if !allowExpired && !now.Before(in.Token.ExpiresAt) {
		return validation{until: now.Add(k.cfg.RefusedTTL)}, nil
	}
	v := validation{valid: true, until: now.Add(k.cfg.TTL), identity: reqctx.Request{UserID: in.Token.User.ID, ProjectID: in.Token.Project.ID, DomainID: in.Token.Domain.ID}}
	if !allowExpired && in.Token.ExpiresAt.Before(v.until) {
		v.until = in.Token.ExpiresAt
	}
	if in.Token.System.All {
		v.identity.SystemScope = "all"
	}
	for _, r := range in.Token.Roles {
		v.identity.Roles = append(v.identity.Roles, r.Name)
	}
	return v, nil
}

// serviceToken returns the service's own token. It logs in if the service has no token yet, or if renew
// is set.
func (k *Keystone) serviceToken(ctx context.Context, renew bool) (string, error) {
	k.mu.Lock()
	own := k.ownToken
	k.mu.Unlock()
	if own != "" && !renew {
		return own, nil
	}
	token, err, _ := k.calls.Do("own", func() (any, error) { return k.logIn(ctx) })
	if err != nil {
		return "", err
	}
	own = token.(string) //nolint:forcetypeassert // logIn returns a string
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ownToken = own
	return own, nil
}

// logIn gets a token of the service from Keystone, with user, password and project.
func (k *Keystone) logIn(ctx context.Context) (string, error) {
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
	status, header, _, err := k.sendRequest(req)
	if err != nil {
		return "", err
	}
	token := header.Get("X-Subject-Token")
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return "", errServiceRejected
	case status != http.StatusCreated || token == "":
		return "", fmt.Errorf("log in: Keystone answers with status %d", status)
	}
	return token, nil
}

// Start makes one attempt to log in, which takes at most Timeout. After an error it may be called again. Its errors name
// Keystone's URL, without a password:
//
//   - Unauthenticated: Keystone rejects the service's user, password or project.
//   - Unavailable: Keystone does not answer, or answers with another error. An App repeats Start, with
//     back-off, until Keystone answers.
func (k *Keystone) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	code, err := fault.Unavailable, k.tryLogin(ctx)
	if errors.Is(err, errServiceRejected) {
		code = fault.Unauthenticated
	}
	return k.codeError(code, err)
}

// Stop closes idle connections, including those of the transport of KeystoneConfig.Client. It returns nil.
func (k *Keystone) Stop(context.Context) error {
	k.cfg.Client.CloseIdleConnections()
	return nil
}

// Check reports whether Keystone answers. It returns nil at once if the last call to Keystone succeeded.
// Otherwise it logs in, blocks for as long as ctx allows, and fails with Unavailable if Keystone does not
// answer or rejects the service's login. The error has Keystone's URL, without a password.
func (k *Keystone) Check(ctx context.Context) error {
	return k.codeError(fault.Unavailable, k.tryLogin(ctx))
}

// tryLogin logs in, unless the last call to Keystone succeeded.
func (k *Keystone) tryLogin(ctx context.Context) error {
	k.mu.Lock()
	own, last := k.ownToken, k.lastErr
	k.mu.Unlock()
	if own != "" && last == nil {
		return nil
	}
	_, err := k.serviceToken(ctx, true)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastErr = err
	return err
}

// codeError gives an error of tryLogin a code, and Keystone's URL.
func (k *Keystone) codeError(code fault.Code, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(code, "Keystone at %s: %w", strings.TrimSuffix(k.url.Redacted(), "/"), err)
}
