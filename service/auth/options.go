package auth

import (
	"net/url"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/urlcheck"
	"github.com/armature-go/armature/tlsfile"
)

// Options are the operator's options for [Keystone]: the section [keystone_authtoken], in the form of package service/config. Their names
// are those of keystonemiddleware.
type Options struct {
	AuthURL       string        `ini:"auth_url" protects:"true" deprecated:"identity_uri" help:"Keystone's endpoint, https://host:5000/v3"`
	Username      string        `ini:"username" deprecated:"user_name, admin_user" help:"user of this service, which must be allowed to validate tokens"`
	Password      string        `ini:"password" secret:"true" deprecated:"admin_password" help:"password of the user"`
	UserDomain    string        `ini:"user_domain_name" default:"Default" help:"domain of the user"`
	Project       string        `ini:"project_name" default:"service" deprecated:"tenant_name, admin_tenant_name" help:"project of the user"`
	ProjectDomain string        `ini:"project_domain_name" default:"Default" help:"domain of the project"`
	ServiceRoles  []string      `ini:"service_token_roles" default:"service" help:"roles of services; a service with one of them may act for a user whose token has expired"`
	CAFile        string        `ini:"cafile" protects:"true" help:"authorities that are trusted for Keystone's certificate (default: the system's)"`
	CertFile      string        `ini:"certfile" protects:"true" help:"client certificate for Keystone"`
	KeyFile       string        `ini:"keyfile" protects:"true" help:"private key of certfile, with mode 0600, or 0640 if the file belongs to root"`
	ServerName    string        `ini:"ssl_server_name" protects:"true" help:"name that Keystone's certificate must have (default: the host of auth_url)"`
	Insecure      bool          `ini:"insecure" default:"false" protects:"true" unsupported:"Keystone's certificate is always verified: name its authority in cafile" help:"verify no certificate"`
	TokenBind     string        `ini:"enforce_token_bind" default:"permissive" protects:"true" unsupported:"the client to which a token is bound is not checked: leave it out" help:"check the client to which a token is bound"`
	CacheTime     time.Duration `ini:"token_cache_time" default:"300" min:"1ms" help:"seconds for which a checked token is cached; within this time a revoked token is still accepted"`
}

// Config returns the configuration for [NewKeystone], without Logger. It reads the files for TLS. Errors: those of
// tlsfile.Client.
func (o *Options) Config() (KeystoneConfig, error) {
	cfg := KeystoneConfig{
		URL: o.AuthURL, Username: o.Username, Password: o.Password, UserDomain: o.UserDomain, ProjectName: o.Project, ProjectDomain: o.ProjectDomain,
		ServiceRoles: o.ServiceRoles, TTL: o.CacheTime,
	}
	files := tlsfile.Client{CAFile: o.CAFile, CertFile: o.CertFile, KeyFile: o.KeyFile, ServerName: o.ServerName}
	if files == (tlsfile.Client{}) {
		return cfg, nil
	}
	var err error
	cfg.TLS, err = files.Config()
	return cfg, err
}

// Validate returns an error, with the option's name in its Meta, if auth_url is set and not a URL. It reads no file, because a service without
// an API may run on a machine without the files for TLS. [Options.Config] reads the files.
func (o *Options) Validate() error {
	if o.AuthURL != "" {
		u, err := url.Parse(o.AuthURL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fault.WithReason(fault.New(fault.Invalid, "%q is not of the form https://host:5000/v3", o.AuthURL), "", map[string]string{"option": "auth_url"})
		}
		if err := urlcheck.CheckPort(u); err != nil { // the error does not have the URL, which may have a password
			return fault.WithReason(err, "", map[string]string{"option": "auth_url"})
		}
	}
	return nil
}
