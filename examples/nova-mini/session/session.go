// Package session makes clients of OpenStack's other services. It logs in at Keystone as the user of this service, and finds the other service in
// the catalog.
package session

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"
	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/fault"
)

// Config configures a [Session]. Type, AuthURL, Username and Password are required.
type Config struct {
	// Type is the type of the service in Keystone's catalog, such as network. Version is the part of the URLs of its API, such as v2.0.
	Type, Version string
	// AuthURL is Keystone's URL, https://host:5000/v3, at which the user logs in.
	AuthURL, Username, Password string
	// UserDomain and ProjectDomain are names of domains. Default: Default. Project is the name of the user's project. Default: service.
	UserDomain, Project, ProjectDomain string
	// Region is the region of the service. Default: the first one in the catalog. Interfaces are the kinds of endpoints, the best first. Default:
	// internal, public. Endpoint is the URL of the service. Default: the one of the catalog.
	Region     string
	Interfaces []string
	Endpoint   string
	// UserTokens reports that the tokens of clients are Keystone's. Otherwise every request is one of the user of this service.
	UserTokens bool
	// TLS is the configuration of connections. Default: the system's authorities.
	TLS *tls.Config
	// Timeout is the time of a request. Default 30 s.
	Timeout time.Duration
}

// Session is a login at Keystone. It is safe for concurrent use.
type Session struct {
	cfg  Config
	http http.Client
	data http.Client // without a timeout and a bound

	logins singleflight.Group

	mu       sync.Mutex
	own      *gophercloud.ProviderClient // nil before the first login
	endpoint string                      // set with own; ends in "/"
}

// maxReply bounds a reply, in bytes.
const maxReply = 16 << 20

// New returns a session. It sends no request. Errors: Invalid with the name of the option in the details, if a required field is empty, or a value
// is malformed.
func New(cfg Config) (*Session, error) {
	for _, one := range [][2]string{{"auth_url", cfg.AuthURL}, {"username", cfg.Username}, {"password", cfg.Password}} {
		if one[1] == "" {
			return nil, optionError(one[0], "is not set, and the "+cfg.Type+" service needs it")
		}
	}
	for option, text := range map[string]string{"auth_url": cfg.AuthURL, "endpoint_override": cfg.Endpoint} {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil) {
			return nil, optionError(option, fmt.Sprintf("%q is not a URL such as https://host:5000/v3", text))
		}
	}
	for _, is := range cfg.Interfaces {
		if !slices.Contains([]string{"public", "internal", "admin"}, is) {
			return nil, optionError("valid_interfaces", fmt.Sprintf("%q is neither public, internal nor admin", is))
		}
	}
	cfg.UserDomain, cfg.ProjectDomain, cfg.Project = cmp.Or(cfg.UserDomain, "Default"), cmp.Or(cfg.ProjectDomain, "Default"), cmp.Or(cfg.Project, "service")
	cfg.Timeout = cmp.Or(cfg.Timeout, 30*time.Second)
	if len(cfg.Interfaces) == 0 {
		cfg.Interfaces = []string{"internal", "public"}
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // net/http defines it as *http.Transport
	transport.TLSClientConfig = cfg.TLS
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a redirect would send tokens to another server
	return &Session{
		cfg: cfg, http: http.Client{Transport: bounded{transport}, Timeout: cfg.Timeout, CheckRedirect: noRedirect},
		data: http.Client{Transport: transport, CheckRedirect: noRedirect},
	}, nil
}

func optionError(option, text string) error {
	return fault.WithReason(fault.New(fault.Invalid, "%s", text), "", map[string]string{"option": option})
}

// bounded is a transport that reads at most maxReply bytes of a reply.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxReply), resp.Body}
	}
	return resp, err
}

// CloseIdle closes the connections that no request uses.
func (s *Session) CloseIdle() {
	s.http.CloseIdleConnections()
	s.data.CloseIdleConnections()
}

// Transfers returns the HTTP client for long bodies. It has no timeout, and does not bound a reply.
func (s *Session) Transfers() *http.Client { return &s.data }

// Client returns a client that uses the token of a client of this service or, if the token is empty, of its own user. It blocks for the first login,
// and renews the token of its own user by itself. Errors: those of [Session.Translate].
func (s *Session) Client(ctx context.Context, token string) (*gophercloud.ServiceClient, error) {
	p, at, err := s.login(ctx)
	if err != nil {
		return nil, s.Translate(ctx, nil, err)
	}
	if token != "" && s.cfg.UserTokens {
		p = &gophercloud.ProviderClient{HTTPClient: s.http}
		p.SetToken(token)
	}
	return &gophercloud.ServiceClient{ProviderClient: p, Endpoint: at, ResourceBase: at + s.cfg.Version + "/", Type: s.cfg.Type}, nil
}

// RenewToken logs in again if the token of the service's own user, which c uses, ends within a time. If that fails, the client keeps its token.
func (s *Session) RenewToken(ctx context.Context, c *gophercloud.ServiceClient, within time.Duration) {
	result, ok := c.GetAuthResult().(tokens.CreateResult)
	if !ok {
		return
	}
	if t, err := result.ExtractToken(); err == nil && !t.ExpiresAt.IsZero() && time.Until(t.ExpiresAt) < within {
		_ = c.Reauthenticate(ctx, c.Token()) // the request fails if the token does not last
	}
}

// login returns the client of the service's own user, and the URL of the service. It logs in if no login has succeeded before. Callers share a login,
// which does not end with the context of one of them.
func (s *Session) login(ctx context.Context) (*gophercloud.ProviderClient, string, error) {
	s.mu.Lock()
	own, at := s.own, s.endpoint
	s.mu.Unlock()
	if own != nil {
		return own, at, nil
	}
	_, err, _ := s.logins.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Timeout)
		defer cancel()
		return nil, s.logInOnce(ctx)
	})
	if err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own, s.endpoint, nil
}

// logInOnce logs in, and finds the service.
func (s *Session) logInOnce(ctx context.Context) error {
	p, err := openstack.NewClient(s.cfg.AuthURL)
	if err != nil {
		return err
	}
	p.HTTPClient = s.http
	err = openstack.Authenticate(ctx, p, gophercloud.AuthOptions{
		IdentityEndpoint: s.cfg.AuthURL, Username: s.cfg.Username, Password: s.cfg.Password, DomainName: s.cfg.UserDomain, AllowReauth: true,
		Scope: &gophercloud.AuthScope{ProjectName: s.cfg.Project, DomainName: s.cfg.ProjectDomain},
	})
	if err != nil {
		return fmt.Errorf("log in at Keystone: %w", err)
	}
	at := s.cfg.Endpoint
	for _, kind := range s.cfg.Interfaces {
		if at == "" {
			at, err = p.EndpointLocator(gophercloud.EndpointOpts{Type: s.cfg.Type, Region: s.cfg.Region, Availability: gophercloud.Availability(kind)})
		}
	}
	if at == "" {
		return fmt.Errorf("the catalog has no %s service in the region %q for the interfaces %v: %w", s.cfg.Type, s.cfg.Region, s.cfg.Interfaces, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own, s.endpoint = p, strings.TrimSuffix(strings.TrimSuffix(at, "/"), "/"+s.cfg.Version)+"/"
	return nil
}

// Translate gives an error of a request of c the code Unavailable, or that of a context that has ended. If the service refuses the token of a client, the code is Unauthenticated (401) or
// Denied (403). c may be nil. The text has the request and the status, not the reply, which may repeat a token.
func (s *Session) Translate(ctx context.Context, c *gophercloud.ServiceClient, err error) error {
	var reply gophercloud.ErrUnexpectedResponseCode
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fault.New(fault.CodeOf(ctx.Err()), "ask the %s service: %w", s.cfg.Type, ctx.Err())
	case errors.As(err, &reply) && s.ofClient(c) && reply.Actual == http.StatusUnauthorized:
		return fault.New(fault.Unauthenticated, "The %s service does not accept the token of the request.", s.cfg.Type)
	case errors.As(err, &reply) && s.ofClient(c) && reply.Actual == http.StatusForbidden:
		return fault.New(fault.Denied, "The %s service does not allow the request.", s.cfg.Type)
	case errors.As(err, &reply):
		err = fmt.Errorf("%s %s is answered with status %d", reply.Method, reply.URL, reply.Actual)
	}
	return fault.New(fault.Unavailable, "ask the %s service: %w", s.cfg.Type, err)
}

// ofClient reports whether c has the token of a client.
func (s *Session) ofClient(c *gophercloud.ServiceClient) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return c != nil && c.ProviderClient != s.own
}
