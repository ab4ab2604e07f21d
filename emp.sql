--
-- PostgreSQL database dump
--

\restrict WFyq2wEYDd8ls6hGGnYS8fUDchTDnJc9bh8jQ5AYZK41DPBeCbKyz5785wkHoCG

-- Dumped from database version 15.20 (Debian 15.20-0+deb12u1)
-- Dumped by pg_dump version 15.20 (Debian 15.20-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Data for Name: hold; Type: TABLE DATA; Schema: counterx; Owner: postgres
--

COPY counterx.hold (id, name, amount, created_at, expires_at) FROM stdin;
\.


--
-- Data for Name: late; Type: TABLE DATA; Schema: counterx; Owner: postgres
--

COPY counterx.late (name, delta, at, uses) FROM stdin;
\.


--
-- Data for Name: token; Type: TABLE DATA; Schema: counterx; Owner: postgres
--

COPY counterx.token (token, name, delta, value, at, hold) FROM stdin;
\.


--
-- Data for Name: type; Type: TABLE DATA; Schema: counterx; Owner: postgres
--

COPY counterx.type (name, min, max, description, generation) FROM stdin;
\.


--
-- Data for Name: ev; Type: TABLE DATA; Schema: public; Owner: postgres
--

COPY public.ev (id) FROM stdin;
\.


--
-- Name: hold_id; Type: SEQUENCE SET; Schema: counterx; Owner: postgres
--

SELECT pg_catalog.setval('counterx.hold_id', 1, false);


--
-- PostgreSQL database dump complete
--

\unrestrict WFyq2wEYDd8ls6hGGnYS8fUDchTDnJc9bh8jQ5AYZK41DPBeCbKyz5785wkHoCG

