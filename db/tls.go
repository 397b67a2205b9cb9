package db

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"strconv"

	"github.com/go-sql-driver/mysql"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/tlsfile"
)

// takeTLSOptions removes the TLS options from the options of a URL and returns the configuration, or nil
// without TLS. The options have SQLAlchemy's names or the driver's. An option that has no effect, or that
// would allow a connection without TLS, is Invalid.
func takeTLSOptions(host string, query url.Values) (*tls.Config, error) {
	takeOption := func(name string) string {
		v := query.Get(name)
		delete(query, name)
		return v
	}
	optionError := func(name, problem string) (*tls.Config, error) {
		return nil, fault.New(fault.Invalid, "option %s of the mysql database URL %s", name, problem)
	}
	for _, name := range []string{"ssl_capath", "ssl_cipher", "allowFallbackToPlaintext"} {
		if takeOption(name) != "" {
			return optionError(name, "is not supported")
		}
	}
	files := tlsfile.Client{CAFile: takeOption("ssl_ca"), CertFile: takeOption("ssl_cert"), KeyFile: takeOption("ssl_key"), ServerName: takeOption("ssl_server_name")}
	on, verify, names := files != tlsfile.Client{}, true, true
	if v := takeOption("tls"); v == "skip-verify" {
		on, verify = true, false
	} else if v != "" {
		yes, err := strconv.ParseBool(v)
		switch {
		case err != nil:
			return optionError("tls", "must be true, false or skip-verify: it cannot be preferred, because TLS is either used or an error")
		case !yes && on:
			return optionError("tls", "is false, so that the options for TLS have no effect: remove them, or set tls=true")
		}
		on = yes
	}
	for _, name := range []string{"ssl_check_hostname", "ssl_verify_identity"} {
		if v := takeOption(name); v != "" {
			yes, err := strconv.ParseBool(v)
			switch {
			case err != nil:
				return optionError(name, "must be true or false")
			case !on:
				return optionError(name, "has no effect without TLS: add tls=true or ssl_ca")
			}
			names = names && yes
		}
	}
	switch {
	case !on:
		return nil, nil //nolint:nilnil // no TLS
	case !verify && (files.CAFile != "" || files.ServerName != ""):
		return optionError("tls", "is skip-verify, so that ssl_ca and ssl_server_name have no effect: remove them, or set tls=true")
	}
	cfg, err := files.Config()
	if err != nil {
		return nil, fault.New(fault.CodeOf(err), "option of the mysql database URL: %w", err)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	cfg.InsecureSkipVerify = !verify || !names // by the operator's option
	if verify && !names {
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

// tlsFailure returns an error that explains err if a connection failed because of TLS, and nil otherwise.
func tlsFailure(err error) error {
	if errors.Is(err, mysql.ErrNoTLS) {
		return fault.New(fault.Precondition, "the URL requires TLS, but the server does not use TLS: %w", err)
	}
	return tlsfile.Failure(err)
}

// isLoopback reports whether a host is this machine.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
