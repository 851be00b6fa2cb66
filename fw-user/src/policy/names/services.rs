//! Names of services, as IANA assigns them, for `--dport ssh`.
//!
//! Built in rather than read from `/etc/services`: a policy must mean the same on every machine.

use super::{TCP, UDP};

/// Which transport protocols a name is assigned for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    /// TCP only.
    T,
    /// UDP only.
    U,
    /// Both.
    B,
}
use Transport::{B, T, U};

/// The port of a service. As in iptables, the name must be assigned for TCP where TCP's port is
/// asked for; for UDP and where nothing is said (`None`), an assignment for either will do.
pub fn service_port(name: &str, protocol: Option<u8>) -> Option<u16> {
    let named = || SERVICES.iter().filter(|row| row.0 == name);
    let fits = |transport| match protocol {
        Some(TCP) => transport != U,
        Some(UDP) => transport != T,
        _ => true,
    };
    let exact = named().find(|row| fits(row.2));
    let any = named().find(|_| protocol != Some(TCP));
    exact.or(any).map(|row| row.1)
}

/// All names of services, for suggestions.
pub fn service_names() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|row| row.0)
}

#[rustfmt::skip]
const SERVICES: &[(&str, u16, Transport)] = &[
    ("tcpmux", 1, T), ("echo", 7, B), ("discard", 9, B), ("null", 9, B), ("sink", 9, B),
    ("systat", 11, T), ("users", 11, T), ("daytime", 13, B), ("netstat", 15, T), ("qotd", 17, T),
    ("quote", 17, T), ("chargen", 19, B), ("source", 19, B), ("ttytst", 19, B),
    ("ftp-data", 20, T), ("fsp", 21, U), ("fspd", 21, U), ("ftp", 21, T), ("ssh", 22, T),
    ("telnet", 23, T), ("mail", 25, T), ("smtp", 25, T), ("time", 37, B), ("timserver", 37, B),
    ("nicname", 43, T), ("whois", 43, T), ("tacacs", 49, B), ("domain", 53, B), ("bootps", 67, U),
    ("bootpc", 68, U), ("tftp", 69, U), ("gopher", 70, T), ("finger", 79, T), ("http", 80, T),
    ("www", 80, T), ("kerberos", 88, B), ("kerberos-sec", 88, B), ("kerberos5", 88, B),
    ("krb5", 88, B), ("iso-tsap", 102, T), ("tsap", 102, T), ("acr-nema", 104, T),
    ("dicom", 104, T), ("poppassd", 106, T), ("pop-3", 110, T), ("pop3", 110, T),
    ("portmapper", 111, B), ("sunrpc", 111, B), ("auth", 113, T), ("authentication", 113, T),
    ("ident", 113, T), ("tap", 113, T), ("nntp", 119, T), ("readnews", 119, T), ("untp", 119, T),
    ("ntp", 123, U), ("epmap", 135, T), ("loc-srv", 135, T), ("netbios-ns", 137, U),
    ("netbios-dgm", 138, U), ("netbios-ssn", 139, T), ("imap", 143, T), ("imap2", 143, T),
    ("snmp", 161, B), ("snmp-trap", 162, B), ("snmptrap", 162, B), ("cmip-man", 163, B),
    ("cmip-agent", 164, B), ("mailq", 174, T), ("xdmcp", 177, U), ("bgp", 179, T),
    ("smux", 199, T), ("qmtp", 209, T), ("wais", 210, T), ("z3950", 210, T), ("ipx", 213, U),
    ("ptp-event", 319, U), ("ptp-general", 320, U), ("pawserv", 345, T), ("zserv", 346, T),
    ("rpc2portmap", 369, B), ("codaauth2", 370, B), ("Clearcase", 371, U), ("clearcase", 371, U),
    ("ldap", 389, B), ("svrloc", 427, B), ("https", 443, B), ("snpp", 444, T),
    ("microsoft-ds", 445, T), ("kpasswd", 464, B), ("smtps", 465, T), ("ssmtp", 465, T),
    ("submissions", 465, T), ("urd", 465, T), ("saft", 487, T), ("isakmp", 500, U),
    ("biff", 512, U), ("comsat", 512, U), ("exec", 512, T), ("login", 513, T), ("who", 513, U),
    ("whod", 513, U), ("cmd", 514, T), ("shell", 514, T), ("syslog", 514, B), ("printer", 515, T),
    ("spooler", 515, T), ("talk", 517, U), ("ntalk", 518, U), ("route", 520, U),
    ("routed", 520, U), ("router", 520, U), ("gdomap", 538, B), ("uucp", 540, T),
    ("uucpd", 540, T), ("klogin", 543, T), ("krcmd", 544, T), ("kshell", 544, T),
    ("dhcpv6-client", 546, U), ("dhcpv6-server", 547, U), ("afpovertcp", 548, T), ("rtsp", 554, B),
    ("nntps", 563, T), ("snntp", 563, T), ("submission", 587, T), ("nqs", 607, T),
    ("asf-rmcp", 623, U), ("qmqp", 628, T), ("ipp", 631, T), ("ldaps", 636, B), ("ldp", 646, B),
    ("tinc", 655, B), ("silc", 706, T), ("kerberos-adm", 749, T), ("kdc", 750, B),
    ("kerberos-iv", 750, B), ("kerberos4", 750, B), ("kerberos-master", 751, B),
    ("kerberos_master", 751, U), ("passwd-server", 752, U), ("passwd_server", 752, U),
    ("hprop", 754, T), ("krb-prop", 754, T), ("krb5_prop", 754, T), ("krb_prop", 754, T),
    ("moira-db", 775, T), ("moira_db", 775, T), ("moira-update", 777, T), ("moira_update", 777, T),
    ("moira-ureg", 779, U), ("moira_ureg", 779, U), ("spamd", 783, T), ("domain-s", 853, B),
    ("supfilesrv", 871, T), ("rsync", 873, T), ("ftps-data", 989, T), ("ftps", 990, T),
    ("telnets", 992, T), ("imaps", 993, T), ("pop3s", 995, T), ("socks", 1080, T),
    ("proofd", 1093, T), ("rootd", 1094, T), ("rmiregistry", 1099, T), ("supfiledbg", 1127, T),
    ("skkserv", 1178, T), ("openvpn", 1194, B), ("predict", 1210, U), ("rmtcfg", 1236, T),
    ("xtel", 1313, T), ("xtelw", 1314, T), ("lotusnote", 1352, T), ("lotusnotes", 1352, T),
    ("ms-sql-s", 1433, T), ("ms-sql-m", 1434, U), ("ingreslock", 1524, T),
    ("datametrics", 1645, B), ("old-radius", 1645, B), ("old-radacct", 1646, B),
    ("sa-msg-port", 1646, B), ("kermit", 1649, T), ("groupwise", 1677, T), ("l2f", 1701, U),
    ("l2tp", 1701, U), ("radius", 1812, B), ("radacct", 1813, B), ("radius-acct", 1813, B),
    ("cisco-sccp", 2000, T), ("nfs", 2049, B), ("gnunet", 2086, B), ("rtcm-sc104", 2101, B),
    ("zephyr-srv", 2102, U), ("zephyr-clt", 2103, U), ("zephyr-hm", 2104, U),
    ("gsigatekeeper", 2119, T), ("iprop", 2121, T), ("gris", 2135, T), ("cvspserver", 2401, T),
    ("venus", 2430, B), ("venus-se", 2431, B), ("codasrv", 2432, B), ("codasrv-se", 2433, B),
    ("mon", 2583, B), ("zebrasrv", 2600, T), ("zebra", 2601, T), ("ripd", 2602, T),
    ("ripngd", 2603, T), ("ospfd", 2604, T), ("bgpd", 2605, T), ("ospf6d", 2606, T),
    ("ospfapi", 2607, T), ("isisd", 2608, T), ("dict", 2628, T), ("f5-globalsite", 2792, T),
    ("gsiftp", 2811, T), ("gpsd", 2947, T), ("gds-db", 3050, T), ("gds_db", 3050, T),
    ("icp", 3130, U), ("icpv2", 3130, U), ("isns", 3205, B), ("iscsi-target", 3260, T),
    ("mysql", 3306, T), ("ms-wbt-server", 3389, T), ("nut", 3493, B), ("distcc", 3632, T),
    ("daap", 3689, T), ("subversion", 3690, T), ("svn", 3690, T), ("suucp", 4031, T),
    ("sysrqd", 4094, T), ("sieve", 4190, T), ("f5-iquery", 4353, T), ("epmd", 4369, T),
    ("remctl", 4373, T), ("ntske", 4460, T), ("ipsec-nat-t", 4500, U), ("fax", 4557, T),
    ("hylafax", 4559, T), ("iax", 4569, U), ("mtn", 4691, T), ("radmin-port", 4899, T),
    ("lrrd", 4949, T), ("munin", 4949, T), ("sip", 5060, B), ("sip-tls", 5061, B),
    ("jabber-client", 5222, T), ("xmpp-client", 5222, T), ("jabber-server", 5269, T),
    ("xmpp-server", 5269, T), ("cfengine", 5308, T), ("mdns", 5353, U), ("postgres", 5432, T),
    ("postgresql", 5432, T), ("rplay", 5555, U), ("freeciv", 5556, T), ("rptp", 5556, T),
    ("nrpe", 5666, T), ("nsca", 5667, T), ("amqps", 5671, T), ("amqp", 5672, T),
    ("canna", 5680, T), ("x11", 6000, T), ("x11-0", 6000, T), ("x11-1", 6001, T),
    ("x11-2", 6002, T), ("x11-3", 6003, T), ("x11-4", 6004, T), ("x11-5", 6005, T),
    ("x11-6", 6006, T), ("x11-7", 6007, T), ("gnutella-svc", 6346, B), ("gnutella-rtr", 6347, B),
    ("redis", 6379, T), ("sge-qmaster", 6444, T), ("sge_qmaster", 6444, T), ("sge-execd", 6445, T),
    ("sge_execd", 6445, T), ("mysql-proxy", 6446, T), ("syslog-tls", 6514, T), ("sane", 6566, T),
    ("sane-port", 6566, T), ("saned", 6566, T), ("ircd", 6667, T), ("babel", 6696, U),
    ("ircs-u", 6697, T), ("afs3-fileserver", 7000, U), ("bbs", 7000, T),
    ("afs3-callback", 7001, U), ("afs3-prserver", 7002, U), ("afs3-vlserver", 7003, U),
    ("afs3-kaserver", 7004, U), ("afs3-volser", 7005, U), ("afs3-bos", 7007, U),
    ("afs3-update", 7008, U), ("afs3-rmtsys", 7009, U), ("font-service", 7100, T),
    ("xfs", 7100, T), ("zope-ftp", 8021, T), ("http-alt", 8080, T), ("webcache", 8080, T),
    ("tproxy", 8081, T), ("omniorb", 8088, T), ("puppet", 8140, T), ("clc-build-daemon", 8990, T),
    ("xinetd", 9098, T), ("bacula-dir", 9101, T), ("bacula-fd", 9102, T), ("bacula-sd", 9103, T),
    ("git", 9418, T), ("xmms2", 9667, T), ("zope", 9673, T), ("webmin", 10000, T),
    ("zabbix-agent", 10050, T), ("zabbix-trapper", 10051, T), ("amanda", 10080, T),
    ("kamanda", 10081, T), ("amandaidx", 10082, T), ("amidxtape", 10083, T), ("nbd", 10809, T),
    ("dicom", 11112, T), ("hkp", 11371, T), ("sgi-cmsd", 17001, U), ("sgi-crsd", 17002, U),
    ("sgi-gcd", 17003, U), ("sgi-cad", 17004, T), ("db-lsp", 17500, T), ("dcap", 22125, T),
    ("gsidcap", 22128, T), ("wnn6", 22273, T), ("binkp", 24554, T), ("asp", 27374, B),
    ("csync2", 30865, T), ("dircproxy", 57000, T), ("tfido", 60177, T), ("fido", 60179, T),
];
