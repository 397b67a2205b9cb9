package mysqldb

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"strconv"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// takeTLSOptions removes the TLS options from the options of a URL and returns the configuration, or nil
// without TLS. The options have the names of SQLAlchemy or of go-sql-driver/mysql. tls=false without other TLS options is
// accepted. An option is Invalid if it is not supported, if it has no effect beside the other options, or if it allows a
// connection without TLS when the server has no TLS (tls=preferred).
func takeTLSOptions(host string, query url.Values) (*tls.Config, error) {
	for _, name := range []string{"ssl_capath", "ssl_cipher", "allowFallbackToPlaintext"} {
		if takeOption(query, name) != "" {
			return nil, tlsOptionError(name, "is not supported")
		}
	}
	o := tlsOptions{files: tlsfile.Client{
		CAFile: takeOption(query, "ssl_ca"), CertFile: takeOption(query, "ssl_cert"), KeyFile: takeOption(query, "ssl_key"), ServerName: takeOption(query, "ssl_server_name"),
	}}
	if err := o.readMode(query); err != nil {
		return nil, err
	}
	if err := o.readNameCheck(query); err != nil {
		return nil, err
	}
	switch {
	case !o.on:
		return nil, nil //nolint:nilnil // no TLS
	case o.skipVerify && (o.files.CAFile != "" || o.files.ServerName != ""):
		return nil, tlsOptionError("tls", "is skip-verify, so that ssl_ca and ssl_server_name have no effect: remove them, or set tls=true")
	}
	return o.config(host)
}

// takeOption removes an option from the options of a URL and returns its value, or "".
func takeOption(query url.Values, name string) string {
	v := query.Get(name)
	delete(query, name)
	return v
}

// tlsOptionError returns the error of a wrong TLS option.
func tlsOptionError(name, problem string) error {
	return fault.New(fault.Invalid, "option %s of the mysql database URL %s", name, problem)
}

// tlsOptions are the TLS options of a URL. The zero value is a connection without TLS.
type tlsOptions struct {
	files      tlsfile.Client
	on         bool
	skipVerify bool // the server's certificate is not verified
	anyName    bool // the server's certificate may have another name
}

// readMode reads the option tls. Without this option, TLS is used only if a file or a server name is set.
func (o *tlsOptions) readMode(query url.Values) error {
	given := o.files != tlsfile.Client{}
	switch v := takeOption(query, "tls"); v {
	case "":
		o.on = given
	case "skip-verify":
		o.on, o.skipVerify = true, true
	default:
		yes, err := strconv.ParseBool(v)
		switch {
		case err != nil:
			return tlsOptionError("tls", "must be true, false or skip-verify; preferred is refused, because it would allow a connection without TLS")
		case !yes && given:
			return tlsOptionError("tls", "is false, so that the options for TLS have no effect: remove them, or set tls=true")
		}
		o.on = yes
	}
	return nil
}

// readNameCheck reads the options that say whether the server's certificate must have the server's name.
func (o *tlsOptions) readNameCheck(query url.Values) error {
	for _, name := range []string{"ssl_check_hostname", "ssl_verify_identity"} {
		v := takeOption(query, name)
		if v == "" {
			continue
		}
		yes, err := strconv.ParseBool(v)
		switch {
		case err != nil:
			return tlsOptionError(name, "must be true or false")
		case !o.on:
			return tlsOptionError(name, "has no effect without TLS: add tls=true or ssl_ca")
		case yes && o.skipVerify:
			return tlsOptionError(name, "has no effect with tls=skip-verify: remove it, or set tls=true")
		}
		o.anyName = o.anyName || !yes
	}
	return nil
}

// config reads the files and returns the configuration for a host.
func (o *tlsOptions) config(host string) (*tls.Config, error) {
	cfg, err := o.files.Config()
	if err != nil {
		return nil, fault.New(fault.CodeOf(err), "option of the mysql database URL: %w", err)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	cfg.InsecureSkipVerify = o.skipVerify || o.anyName // the operator has chosen this by an option
	if o.anyName && !o.skipVerify {
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyAuthority(s, cfg.RootCAs) }
	}
	return cfg, nil
}

// verifyAuthority verifies a server's certificate except for its name.
func verifyAuthority(s tls.ConnectionState, roots *x509.CertPool) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := s.PeerCertificates[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	return nil
}

// isLoopback reports whether a host is this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
